"""The store in which the ranks of a job meet: at the first free port of a sequence that all of them know."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.waiting import PAUSE, Wait
from segformer_spark.errors import PortTaken, UserError
from segformer_spark.run.console import logger

_QUESTION = timedelta(seconds=10)
_CONNECT_SECONDS, _HANDSHAKE = 2.0, timedelta(seconds=5)
_RESOLVE_SECONDS, _FOREIGN_SECONDS = 30.0, 60.0

Address = tuple[str, int]


def open_store(launch: Launch, wait: Wait) -> tuple[Any, Address]:
    """The store, and where it is.

    Raises:
        PeersNotFound: rank 0 does not come.
        PortTaken: something else listens at every port that may be used.
        UserError: the name of rank 0's host does not resolve.
    """
    assert launch.master is not None
    host, port = launch.master
    if launch.launcher == "torchrun":
        # Its agent holds the store already.
        found = dist.rendezvous("env://", launch.rank, launch.world_size, timeout=_QUESTION)  # type: ignore[attr-defined]
        with wait.asking():
            store, _, _ = next(found)
        return store, (host, port)
    ports = (port, *launch.other_ports)
    if launch.rank == 0:
        return _serve(launch, wait, ports)
    _wait_for_name(host, wait)
    return _connect(launch, wait, ports)


def _serve(launch: Launch, wait: Wait, ports: Sequence[int]) -> tuple[Any, Address]:
    for port in ports:
        try:
            listener = _listen(port)
        except OSError as error:
            logger.info("%s port %d is not to be had: %s", wait.who, port, error.strerror)
            continue
        store = dist.TCPStore(  # type: ignore[attr-defined]
            *("127.0.0.1", port, None, True),
            timeout=_QUESTION,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        store.set(_sign(launch), "1")
        return store, (_host(launch), port)
    raise _taken(launch, wait, ports)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    try:
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _connect(launch: Launch, wait: Wait, ports: Sequence[int]) -> tuple[Any, Address]:
    """Try the ports in turn until one has the store of this job."""
    host, foreign_since = _host(launch), None
    while True:
        foreign = False
        for port in ports:
            if not _answers(host, port):
                continue
            store = _store_of_this_job(launch, port)
            if store is not None:
                return store, (host, port)
            foreign = True
        now = time.monotonic()
        foreign_since = (foreign_since or now) if foreign else None
        if len(ports) == 1 and foreign_since is not None and now - foreign_since > _FOREIGN_SECONDS:
            raise _taken(launch, wait, ports)
        wait.pause(f"rank 0 on {host}, port {' or '.join(map(str, ports))}")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _store_of_this_job(launch: Launch, port: int) -> Any | None:
    """The store at this port; None if it is another job's, or no store."""
    try:
        store = _dial(_host(launch), port)
        if store is None:
            return None
        if not store.check([_sign(launch)]):
            time.sleep(10 * PAUSE)  # it may have been opened this moment
            if not store.check([_sign(launch)]):
                return None
        store.set_timeout(_QUESTION)
    except (RuntimeError, dist.DistError):
        return None
    return store


def _dial(host: str, port: int) -> Any | None:
    """A client of the store at this port; None where nobody speaks its language.

    torch waits for ever for the first word of a listener that says nothing: in a thread, which is left behind then.
    """
    found: list[Any] = []

    def dial() -> None:
        with suppress(RuntimeError, dist.DistError):
            found.append(dist.TCPStore(host, port, None, False, timeout=_HANDSHAKE, wait_for_workers=False))  # type: ignore[attr-defined]

    thread = threading.Thread(target=dial, daemon=True)
    thread.start()
    thread.join(_HANDSHAKE.total_seconds())
    return found[0] if found else None


def _wait_for_name(host: str, wait: Wait) -> None:
    """Names may fail for a moment while a node boots."""
    until = time.monotonic() + _RESOLVE_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"{wait.who} the name of the first node, {host}, does not resolve here: {error.strerror}",
                    "Set MASTER_ADDR to a name or an address under which all nodes reach it.",
                ) from error
            wait.pause(f"the address of {host}")
        else:
            return


def _host(launch: Launch) -> str:
    assert launch.master is not None
    return launch.master[0]


def _sign(launch: Launch) -> str:
    """The key that shows whose store it is."""
    return f"segformer_spark/{launch.token}/open"


def _taken(launch: Launch, wait: Wait, ports: Sequence[int]) -> PortTaken:
    listed = f"port {ports[0]} is" if len(ports) == 1 else f"ports {', '.join(map(str, ports))} are"
    return PortTaken(
        f"{wait.who} {listed} in use on {_host(launch)} by something else than this job",
        "Leave MASTER_PORT out, so that the ranks look for a free one." if len(ports) == 1 else "",
    )
