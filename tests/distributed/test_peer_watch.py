from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.process_group import process_group
from segformer_spark.exit_codes import ExitCode
from tests.ranks import forked
from tests.waiting import wait_for

PEER_TIMEOUT = 2


def act(rank: int, port: int, how: str, folder: Path) -> None:
    with (folder / f"{rank}.err").open("wb") as stderr:
        os.dup2(stderr.fileno(), 2)
    launch = Launch("test", rank, 2, rank, 2, ("127.0.0.1", port))
    with process_group(launch, torch.device("cpu"), timeout_minutes=5, peer_timeout=PEER_TIMEOUT) as group:
        (folder / f"{rank}.joined").touch()
        if how == "wait":
            time.sleep(60)
        if rank == 1:
            time.sleep(PEER_TIMEOUT + 1)  # busy is not lost
        group.barrier()


@dataclass
class Pair:
    """Two ranks."""

    ranks: list[Any]
    folder: Path

    def send(self, number: signal.Signals, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.ranks[rank].pid, number)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    port = unused_port()
    ranks = [forked(act, rank, port, request.param, tmp_path) for rank in range(2)]
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.joined"))) == 2, "both ranks")
        yield Pair(ranks, tmp_path)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join(10)


@pytest.mark.parametrize("pair", ["wait"], indirect=True)
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.sweep)])
def test_a_rank_that_stands_still_ends_the_others(pair: Pair, lost: int) -> None:
    """SIGSTOP leaves its connections open, as a cut cable does: no error reaches the other rank."""
    pair.send(signal.SIGSTOP, lost)
    other = pair.ranks[1 - lost]
    other.join(30)
    assert other.exitcode == ExitCode.PEER_LOST
    stderr = (pair.folder / f"{1 - lost}.err").read_text()
    assert f"no heartbeat from rank {lost} on " in stderr
    assert f"[rank {1 - lost} on " in stderr


@pytest.mark.parametrize("pair", ["slow"], indirect=True)
def test_a_rank_that_works_for_long_is_not_lost(pair: Pair) -> None:
    for rank in pair.ranks:
        rank.join(30)
    assert [rank.exitcode for rank in pair.ranks] == [0, 0]


@pytest.mark.parametrize("pair", ["wait"], indirect=True)
def test_ranks_that_were_suspended_together_continue(pair: Pair) -> None:
    """As under gang scheduling: each sees that it stood still itself."""
    pair.send(signal.SIGSTOP, 0, 1)
    time.sleep(PEER_TIMEOUT + 1)
    pair.send(signal.SIGCONT, 0, 1)
    time.sleep(1.5)
    assert [rank.exitcode for rank in pair.ranks] == [None, None]
