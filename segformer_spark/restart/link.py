"""JSON messages between the agents of a job and their coordinator, a line each, over TCP.

Both ends first show that they have the key which the batch script drew for this job, without sending it: each answers
the random number of the other by an HMAC (RFC 2104). Whoever else connects, or listens at the port, is not heard.
"""

from __future__ import annotations

import hmac
import json
import random
import secrets
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from segformer_spark.errors import PeersNotFound
from segformer_spark.restart.coordinator import Coordinator, Message

HEARTBEATS_PER_LIMIT = 4
_LONGEST_LINE = 4096
_PORTS = range(10000, 15000)  # below those of the ranks, and those that Linux hands out by itself
_PORTS_TRIED = 8
_HELLO_SECONDS = 10.0
_TICK = 0.2


class Link:
    """One end of a connection. Sending waits for the network, receiving does not."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(5.0)
        self.socket, self._received = connection, b""

    def send(self, message: Message) -> None:
        """Send.

        Raises:
            OSError: the other end is gone, or takes nothing any more.
        """
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message]:
        """What came whole; to be called when the socket is readable.

        Raises:
            EOFError: the other end has closed, or does not speak this language.
            OSError: the connection broke.
        """
        data = self.socket.recv(_LONGEST_LINE)
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > _LONGEST_LINE:
            raise EOFError
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise EOFError from error
        if not all(isinstance(message, dict) for message in messages):
            raise EOFError
        return messages

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


def ports_of(token: str) -> Sequence[int]:
    """Where the coordinator of a job step listens: the first of these that is free."""
    return random.Random(f"agents {token}").sample(_PORTS, _PORTS_TRIED)


def listen(token: str) -> socket.socket:
    """The coordinator's socket.

    Raises:
        PeersNotFound: none of the ports is free.
    """
    for port in ports_of(token):
        with suppress(OSError):
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=dual)
    raise PeersNotFound(f"restart in place: none of the ports {', '.join(map(str, ports_of(token)))} is free")


def proof(key: str, role: str, nonce: str, about: Message) -> str:
    """What only who has the key can say to a random number of the other end.

    Args:
        role: of who proves: an answer is of no use in the other direction.
        about: what is said with it.
    """
    text = json.dumps([role, nonce, about], sort_keys=True)
    return hmac.new(key.encode(), text.encode(), "sha256").hexdigest()


def connect(host: str, token: str, key: str, hello: Message, seconds: float) -> tuple[Link, list[Message]]:
    """An agent's connection, once both ends have shown that they have the key, and what came behind that.

    Args:
        hello: "task", "node" and "host" of the agent.

    Raises:
        PeersNotFound: there is no coordinator of this job within so many `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for port in ports_of(token):
            with suppress(OSError, EOFError):
                link = Link(socket.create_connection((host, port), timeout=2.0))
                try:
                    return link, _introduce(link, key, hello)
                except BaseException:
                    link.close()
                    raise
        time.sleep(_TICK)
    raise PeersNotFound(f"restart in place: the coordinator on {host} did not answer within {seconds:.0f} s")


def _introduce(link: Link, key: str, hello: Message) -> list[Message]:
    """Both proofs, from the agent's side; returns what came behind the coordinator's.

    Raises:
        EOFError: the other end does not have the key.
    """
    greeting, own = _first(link.receive()), secrets.token_hex(16)
    about = {**hello, "nonce": own}
    link.send({**about, "proof": proof(key, "agent", str(greeting.get("nonce")), about)})
    answer, *rest = link.receive() or [{}]
    if not hmac.compare_digest(str(answer.get("proof")), proof(key, "coordinator", own, {})):
        raise EOFError
    return rest


def _first(messages: list[Message]) -> Message:
    if len(messages) != 1:
        raise EOFError
    return messages[0]


class Server:
    """Passes the agents' messages to the coordinator, and its own to them.

    Args:
        limit: seconds of silence after which an agent is lost; None: only when its connection closes.
    """

    def __init__(self, listener: socket.socket, key: str, coordinator: Coordinator, limit: float | None) -> None:
        self._listener, self._key, self._coordinator, self._limit = listener, key, coordinator, limit
        self._links: dict[int, Link] = {}
        self._heard: dict[int, float] = {}
        self._strangers: dict[Link, tuple[float, str]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Until every agent has been told to leave and is gone."""
        looked, beat = time.monotonic(), 0.0
        while self._links or not self._coordinator.is_leaving:
            for key, _ in self._selector.select(_TICK):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.data)
            now = time.monotonic()
            if now - looked > 10 * _TICK:  # this process itself stood still (suspended by Slurm): the others did too
                self._heard = dict.fromkeys(self._heard, now)
            looked = now
            if self._limit is not None and now - beat > self._limit / HEARTBEATS_PER_LIMIT:
                beat = now
                self._tell({task: {"do": "nothing"} for task in self._links})
            self._drop_the_silent(now)
            self._tell(self._coordinator.tick())

    def _accept(self) -> None:
        with suppress(OSError):
            link, nonce = Link(self._listener.accept()[0]), secrets.token_hex(16)
            link.send({"nonce": nonce})
            self._strangers[link] = time.monotonic(), nonce
            self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _hear(self, link: Link) -> None:
        task = next((number for number, own in self._links.items() if own is link), None)
        try:
            messages = link.receive()
        except (EOFError, OSError):
            self._drop(link, task, "its connection closed")
            return
        for message in messages:
            if task is None:
                task = self._greet(link, message)
                if task is None:
                    self._drop(link, None, "")
                    return
            else:
                self._heard[task] = time.monotonic()
                self._tell(self._act(task, message))

    def _greet(self, link: Link, hello: Message) -> int | None:
        """The task of who has the key; None of others."""
        given = hello.pop("proof", None)
        expected = proof(self._key, "agent", self._strangers[link][1], hello)
        task, node = hello.get("task"), hello.get("node")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), expected.encode()):
            return None
        if type(task) is not int or type(node) is not int or task in self._links:
            return None
        del self._strangers[link]
        self._links[task], self._heard[task] = link, time.monotonic()
        with suppress(OSError):  # noticed when it is read
            link.send({"proof": proof(self._key, "coordinator", str(hello.get("nonce")), {})})
        self._tell(self._coordinator.joined(task, node, str(hello.get("host"))))
        return task

    def _act(self, task: int, message: Message) -> Mapping[int, Message]:
        status = message.get("ended")
        if type(status) is int:
            return self._coordinator.ended(task, status)
        return self._coordinator.asked_to_stop() if "stop" in message else {}

    def _tell(self, messages: Mapping[int, Message]) -> None:
        for task, message in messages.items():
            link = self._links.get(task)
            if link is not None:
                with suppress(OSError):  # noticed when it is read
                    link.send(message)

    def _drop_the_silent(self, now: float) -> None:
        for link, (since, _) in [*self._strangers.items()]:
            if now - since > _HELLO_SECONDS:
                self._drop(link, None, "")
        for task, heard in [*self._heard.items()]:
            if self._limit is not None and now - heard > self._limit and task in self._links:
                self._drop(self._links[task], task, f"no sign of life for {now - heard:.0f} s")

    def _drop(self, link: Link, task: int | None, why: str) -> None:
        self._strangers.pop(link, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(link.socket)
        link.close()
        if task is not None and self._links.get(task) is link:
            del self._links[task], self._heard[task]
            self._tell(self._coordinator.lost(task, why))
