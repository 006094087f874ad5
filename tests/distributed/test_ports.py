from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from segformer_spark.distributed import ports


def test_a_port_that_is_taken_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        with pytest.raises(OSError, match="no unused TCP port"):
            ports.unused_port()
    assert ports.unused_port() == port


def test_no_outgoing_connection_can_take_it() -> None:
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(ports.unused_port() < first for _ in range(20))


def test_seeds_of_a_program_do_not_decide() -> None:
    """Two workers that set the same seed would meet at the same port."""

    def draw() -> list[int]:
        random.seed(1)
        return [ports.unused_port() for _ in range(5)]

    assert draw() != draw()
