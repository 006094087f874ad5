"""JSON messages between the agents of a job and their coordinator, a line each, over TCP.

The first line of an agent shows the key that the batch script drew for this job: whoever else connects is not heard.
"""

from __future__ import annotations

import hmac
import json
import random
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from segformer_spark.errors import PeersNotFound
from segformer_spark.restart.coordinator import Coordinator, Message

WELCOME: Message = {"do": "wait"}
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


def connect(host: str, token: str, hello: Message, seconds: float) -> tuple[Link, list[Message]]:
    """An agent's connection, once the coordinator has answered its first message, and what came behind the answer.

    Raises:
        PeersNotFound: there is no coordinator of this job within so many `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for port in ports_of(token):
            with suppress(OSError, EOFError):
                link = Link(socket.create_connection((host, port), timeout=2.0))
                try:
                    link.send(hello)
                    answer, *rest = link.receive() or [{}]
                    if answer == WELCOME:
                        return link, rest
                except BaseException:
                    link.close()
                    raise
                link.close()
        time.sleep(_TICK)
    raise PeersNotFound(f"restart in place: the coordinator on {host} did not answer within {seconds:.0f} s")


class Server:
    """Passes the agents' messages to the coordinator, and its own to them.

    Args:
        limit: seconds of silence after which an agent is lost; None: only when its connection closes.
    """

    def __init__(self, listener: socket.socket, key: str, coordinator: Coordinator, limit: float | None) -> None:
        self._listener, self._key, self._coordinator, self._limit = listener, key, coordinator, limit
        self._links: dict[int, Link] = {}
        self._heard: dict[int, float] = {}
        self._strangers: dict[Link, float] = {}
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
            link = Link(self._listener.accept()[0])
            self._strangers[link] = time.monotonic()
            self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _hear(self, link: Link) -> None:
        task = next((number for number, own in self._links.items() if own is link), None)
        try:
            for message in link.receive():
                if task is None:
                    task = self._greet(link, message)
                else:
                    self._heard[task] = time.monotonic()
                    self._tell(self._act(task, message))
        except (EOFError, OSError, KeyError, TypeError, ValueError):
            self._drop(link, task, "its connection closed")

    def _greet(self, link: Link, hello: Message) -> int:
        """The task of who shows the key.

        Raises:
            ValueError: it does not.
        """
        task, node, host = int(hello["task"]), int(hello["node"]), str(hello["host"])
        if not hmac.compare_digest(str(hello["key"]).encode(), self._key.encode()) or task in self._links:
            raise ValueError
        del self._strangers[link]
        self._links[task], self._heard[task] = link, time.monotonic()
        link.send(WELCOME)
        self._tell(self._coordinator.joined(task, node, host))
        return task

    def _act(self, task: int, message: Message) -> Mapping[int, Message]:
        if "ended" in message:
            return self._coordinator.ended(task, int(message["ended"]))
        return self._coordinator.asked_to_stop() if "stop" in message else {}

    def _tell(self, messages: Mapping[int, Message]) -> None:
        for task, message in messages.items():
            link = self._links.get(task)
            if link is not None:
                with suppress(OSError):  # noticed when it is read
                    link.send(message)

    def _drop_the_silent(self, now: float) -> None:
        for link, since in [*self._strangers.items()]:
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
