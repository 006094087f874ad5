"""A TCP port for ranks that one process of this machine starts."""

from __future__ import annotations

import random
import socket

# Linux gives outgoing connections ports from 32768 (net.ipv4.ip_local_port_range): none of those can take one of these
# between its choice and the moment when rank 0 listens.
_PORTS = range(20000, 32768)


def unused_port() -> int:
    """A port of the loopback interface at which nothing listens, drawn at random.

    Raises:
        OSError: a hundred ports in succession are taken.
    """
    draw = random.SystemRandom()
    for _ in range(100):
        port = draw.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no unused TCP port found between {_PORTS.start} and {_PORTS.stop}")
