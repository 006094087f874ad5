"""The network interface by which the nodes of a job reach each other, for gloo.

By itself gloo publishes the address of the host's name, which Debian's /etc/hosts gives as 127.0.1.1.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol

import psutil

from segformer_spark.run.console import logger

VARIABLE = "GLOO_SOCKET_IFNAME"
_LOOPBACK = ("127.", "::1")


class Seen(Protocol):
    """A rank's host, its own address on the way to rank 0, and rank 0's address as it sees it."""

    @property
    def host(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def master(self) -> str: ...


def local_address(host: str, port: int) -> str:
    """This host's address on the way to another one; empty where there is none."""
    for family, _, _, _, target in _addresses(host, port):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(target)  # sends nothing
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return ""


def address_of(host: str) -> str:
    """The address of a name; empty where it has none."""
    found = _addresses(host, 1)
    return str(found[0][4][0]) if found else ""


def choose_interface(own: Seen, ranks: Sequence[Seen]) -> None:
    """Set GLOO_SOCKET_IFNAME for ranks on several hosts, unless it is set."""
    if os.environ.get(VARIABLE) or len({one.host for one in ranks}) == 1:
        return
    seen = own.address
    if own.host == ranks[0].host:  # which sees itself from inside; the others know the address that they reached
        seen = next(one.master for one in ranks if one.host != own.host)
    name = _interface_with(seen)
    if name is None:
        logger.warning(
            "no interface of %s has the address %s by which other nodes reach it: set %s if ranks do not connect",
            *(own.host, seen or "(none)", VARIABLE),
        )
        return
    os.environ[VARIABLE] = name


def _interface_with(address: str) -> str | None:
    if not address or address.startswith(_LOOPBACK):
        return None
    for name, known in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in known):
            return str(name)
    return None


def _addresses(host: str, port: int) -> list[Any]:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))
    except OSError:
        return []
