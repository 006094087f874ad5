from __future__ import annotations

import os
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from segformer_spark.distributed.interface import VARIABLE, choose_interface, local_address


class Rank(NamedTuple):
    host: str
    address: str
    master: str


INTERFACES = {
    **{"lo": ["127.0.0.1", "::1"], "eth0": ["192.168.1.5"]},
    **{"ib0": ["10.0.0.1", "fe80::1%ib0"], "ib1": ["10.0.0.2"]},
}


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: [SimpleNamespace(address=one) for one in own] for name, own in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: known)
    monkeypatch.setenv(VARIABLE, "")


def chosen(own: Rank, *others: Rank) -> str | None:
    choose_interface(own, sorted([own, *others], key=lambda one: one.host))
    return os.environ.get(VARIABLE) or None


def test_a_rank_takes_the_interface_of_its_route_to_rank_0() -> None:
    assert chosen(Rank("b", "10.0.0.2", "10.0.0.1"), Rank("a", "127.0.1.1", "127.0.1.1")) == "ib1"


def test_the_first_host_takes_the_address_that_others_reached() -> None:
    """Debian's /etc/hosts gives its own name as 127.0.1.1."""
    assert chosen(Rank("a", "127.0.1.1", "127.0.1.1"), Rank("b", "10.0.0.2", "10.0.0.1")) == "ib0"


def test_one_host_alone_keeps_gloos_choice() -> None:
    assert chosen(Rank("a", "127.0.1.1", "127.0.1.1"), Rank("a", "127.0.1.1", "127.0.1.1")) is None


def test_a_given_interface_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mine")
    assert chosen(Rank("b", "10.0.0.2", "10.0.0.1"), Rank("a", "10.0.0.1", "10.0.0.1")) == "mine"


def test_where_no_interface_fits_the_variable_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "segformer_spark"):
        assert chosen(Rank("b", "172.16.0.9", "172.16.0.1"), Rank("a", "172.16.0.1", "172.16.0.1")) is None
    assert "no interface of b has the address 172.16.0.9" in caplog.text
    assert "set GLOO_SOCKET_IFNAME" in caplog.text


def test_the_way_to_oneself() -> None:
    assert local_address("127.0.0.1", 9).startswith("127.")
    assert local_address("no.such.host.invalid", 9) == ""
