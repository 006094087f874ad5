"""How the ranks of a job find each other: one store, one attempt, and who is missing by name.

Each rank leaves a greeting in the store, with a number that its process drew. Rank 0 proposes an attempt that lists
these numbers, anew whenever they change; a rank takes a proposal that has its own number, and goes on when rank 0 has
seen that all took the same one. So a store that outlives an attempt, as torchrun's does, shows nobody the addresses of
the dead (pytorch#108158: torchrun's restart count is that of one node).
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.interface import address_of, choose_interface, local_address
from segformer_spark.distributed.job_store import Address, open_store
from segformer_spark.distributed.waiting import Wait

_PREFIX = "segformer_spark"


@dataclass(frozen=True)
class Meeting:
    """Where the ranks met.

    Attributes:
        name: of this attempt.
        store: for it alone.
        address: (host, port) of the store.
        hosts: of all ranks, by rank.
        about: what each rank said of itself.
    """

    name: str
    store: Any
    address: Address
    hosts: Sequence[str]
    about: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Greeting:
    """A process's number, its host, its address on the way to rank 0, rank 0's address there, and what it adds."""

    number: str
    host: str
    address: str
    master: str
    about: dict[str, Any]


@dataclass(frozen=True)
class _Attempt:
    name: str
    greetings: list[_Greeting]


def meet(launch: Launch, limit: float, about: dict[str, Any] | None = None) -> Meeting:
    """Wait until all ranks are there. Collective.

    Args:
        limit: seconds after which it is an error that ranks are missing.
        about: what the others shall know of this rank, as JSON values.

    Raises:
        PeersNotFound: ranks are missing, or rank 0 is gone; they are named.
        PortTaken: something else listens at every port that may be used.
        UserError: the name of rank 0's host does not resolve.
    """
    wait = Wait(launch, time.monotonic() + limit)
    store, address = open_store(launch, wait)
    root = PrefixStore(f"{_PREFIX}/{launch.token}", store)
    host, port = address
    number, name = secrets.token_hex(8), socket.gethostname()
    own = _Greeting(number, name, local_address(host, port), address_of(host), about or {})
    with wait.asking():
        root.set(_greeting_key(launch.rank), json.dumps(asdict(own)))
    attempt = _lead(root, wait, own) if launch.rank == 0 else _follow(root, wait, own)
    choose_interface(own, attempt.greetings)
    store.set_timeout(timedelta(seconds=limit))
    hosts, told = [one.host for one in attempt.greetings], [one.about for one in attempt.greetings]
    return Meeting(attempt.name, PrefixStore(f"{_PREFIX}/{attempt.name}", store), address, hosts, told)


def _lead(root: Any, wait: Wait, own: _Greeting) -> _Attempt:
    """Rank 0: propose attempts until every rank has taken the same one and knows it; then rank 0 may leave."""
    others = range(1, wait.launch.world_size)
    attempt = _Attempt("", [])
    while True:
        with wait.asking():
            missing = [rank for rank in others if not root.check([_greeting_key(rank)])]
            if not missing:
                greetings = [own, *(_Greeting(**json.loads(root.get(_greeting_key(rank)))) for rank in others)]
                if attempt.greetings != greetings:
                    attempt = _Attempt(secrets.token_hex(8), greetings)
                    root.set("proposal", json.dumps(asdict(attempt)))
                missing = [rank for rank in others if not root.check([_taken_key(attempt, rank)])]
                if not missing:
                    root.set(_agreed_key(attempt), "1")
                    missing = [rank for rank in others if not root.check([_known_key(attempt, rank)])]
                if not missing:
                    return attempt
        wait.pause(f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}")


def _follow(root: Any, wait: Wait, own: _Greeting) -> _Attempt:
    """Other ranks: take proposals that have this process's own number, until one is agreed on."""
    while True:
        with wait.asking():
            if root.check(["proposal"]):
                raw = json.loads(root.get("proposal"))
                attempt = _Attempt(raw["name"], [_Greeting(**one) for one in raw["greetings"]])
                if own in attempt.greetings:
                    root.set(_taken_key(attempt, wait.launch.rank), "1")
                    if root.check([_agreed_key(attempt)]):
                        root.set(_known_key(attempt, wait.launch.rank), "1")
                        return attempt
        wait.pause("other ranks, for which rank 0 waits")


def _greeting_key(rank: int) -> str:
    return f"greeting/{rank}"


def _known_key(attempt: _Attempt, rank: int) -> str:
    return f"known/{attempt.name}/{rank}"


def _agreed_key(attempt: _Attempt) -> str:
    return f"agreed/{attempt.name}"


def _taken_key(attempt: _Attempt, rank: int) -> str:
    return f"taken/{attempt.name}/{rank}"
