from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from segformer_spark.errors import PeersNotFound
from segformer_spark.restart.coordinator import Coordinator, Layout, Verdict
from segformer_spark.restart.link import Link, Server, connect, listen, ports_of, proof

HELLO = {"task": 0, "node": 0, "host": "n0"}


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name} {time.monotonic()}"


@pytest.fixture
def server(token: str) -> Iterator[Coordinator]:
    """The coordinator of one agent, served in a thread."""
    never = lambda status, generation: Verdict(False, "no", status)  # noqa: E731
    coordinator = Coordinator(
        Layout(1, 1), never, lambda line: None, lambda host, what: None, time.monotonic, time.time
    )
    thread = threading.Thread(target=Server(listen(token), "secret", coordinator, 1.0).run, daemon=True)
    thread.start()
    yield coordinator
    thread.join(10)
    assert not thread.is_alive(), "it ends when all agents have left"


def until(link: Link, what: str) -> dict[str, object]:
    while True:
        for message in link.receive():
            if message["do"] == what:
                return message


def test_an_agent_is_told_to_start_and_to_leave(token: str, server: Coordinator) -> None:
    link, before = connect("127.0.0.1", token, "secret", HELLO, 5)
    start = before[0] if before else until(link, "start")
    assert (start["do"], start["rank"], start["world_size"]) == ("start", 0, 1)
    link.send({"ended": 0})
    assert until(link, "leave")["status"] == 0
    link.close()


@pytest.mark.parametrize(
    "words",
    [
        b'{"proof": "guessed", "task": 0, "node": 0, "host": "x"}\n',
        b'{"task": Infinity, "node": 0, "host": "", "proof": ""}\n',
        b'{"proof": 7}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"[" * 4000 + b"\n",
        b"x" * 9000,
        b"",
    ],
)
def test_who_does_not_know_the_key_is_not_heard(words: bytes, token: str, server: Coordinator) -> None:
    port = next(port for port in ports_of(token) if _answers(port))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
        stranger.sendall(words)
        if words:
            with suppress(ConnectionError):
                assert json.loads(stranger.recv(100)).keys() == {"nonce"}
                assert stranger.recv(100) == b"", "hung up"
        link, before = connect("127.0.0.1", token, "secret", HELLO, 5)
    start = before[0] if before else until(link, "start")
    assert start["do"] == "start"
    link.send({"ended": 0})
    until(link, "leave")
    link.close()


def test_an_agent_that_says_nothing_any_more_is_lost(token: str, server: Coordinator) -> None:
    link, _ = connect("127.0.0.1", token, "secret", HELLO, 5)
    deadline = time.monotonic() + 10
    while server._agents and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server._agents
    link.close()
    server.asked_to_stop()
    server._leave(0)


def test_an_agent_obeys_nobody_who_does_not_know_the_key(token: str) -> None:
    """Another user's program at the port, which asks for proof and answers with what it was told."""
    listener = listen(token)
    seen: list[bytes] = []

    def pose() -> None:
        connection, _ = listener.accept()
        connection.sendall(b'{"nonce": "0"}\n')
        seen.append(connection.recv(4096))
        mirrored = json.loads(seen[0])["proof"]
        connection.sendall(json.dumps({"do": "wait", "proof": mirrored}).encode() + b"\n")
        connection.recv(4096)

    thread = threading.Thread(target=pose, daemon=True)
    thread.start()
    with pytest.raises(PeersNotFound):
        connect("127.0.0.1", token, "secret", HELLO, 1.0)
    thread.join(5)
    assert b"secret" not in seen[0]
    listener.close()


def test_a_proof_is_of_one_role_number_and_content() -> None:
    values = {
        proof(key, role, nonce, about)
        for key in ("a", "b")
        for role in ("agent", "coordinator")
        for nonce in ("1", "2")
        for about in ({}, {"task": 1})
    }
    assert len(values) == 16


def test_no_coordinator_is_an_error_in_time(token: str) -> None:
    with pytest.raises(PeersNotFound, match="did not answer within 0 s"):
        connect("127.0.0.1", token, "secret", HELLO, 0.3)


def test_messages_come_whole_whatever_the_pieces() -> None:
    left, right = socket.socketpair()
    # Links are of TCP sockets; what they read and write does not depend on that.
    reader = Link.__new__(Link)
    reader.socket, reader._received = right, b""
    for piece in (b'{"a"', b": 1}\n{", b'"b": 2}\n{"c": 3}\n'):
        left.sendall(piece)
        got = reader.receive()
    assert got == [{"b": 2}, {"c": 3}]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
