from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segformer_spark.exit_codes import ExitCode
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, sys, time, torch
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import process_group
rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
launch = Launch("test", rank, 2, rank, 2, ("127.0.0.1", port))
with process_group(launch, torch.device("cpu"), timeout_minutes=5, peer_timeout=2) as group:
    print("joined", flush=True)
    if how == "slow" and rank == 1:
        time.sleep(5)  # longer than the limit: busy is not lost
    if how == "wait" or rank == 0:
        group.barrier() if how == "slow" else time.sleep(60)
    if how == "slow" and rank == 1:
        group.barrier()
print("left", flush=True)
"""


def start(rank: int, port: int, how: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(rank), str(port), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until_joined(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "joined\n"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_stands_still_ends_the_others(lost: int) -> None:
    """SIGSTOP leaves its connections open, as a cut cable does: no error reaches the other rank."""
    port = free_port()
    ranks = [start(rank, port, "wait") for rank in range(2)]
    try:
        wait_until_joined(ranks)
        ranks[lost].send_signal(19)
        other = ranks[1 - lost]
        _, stderr = other.communicate(timeout=30)
        assert other.returncode == ExitCode.PEER_LOST
        assert f"no heartbeat from rank {lost} on " in stderr
        assert f"[rank {1 - lost} on " in stderr
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_a_rank_that_works_for_long_is_not_lost() -> None:
    port = free_port()
    ranks = [start(rank, port, "slow") for rank in range(2)]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["joined\nleft\n"] * 2


def test_ranks_that_were_suspended_together_go_on() -> None:
    """As under gang scheduling: each sees that it stood still itself."""
    port = free_port()
    ranks = [start(rank, port, "wait") for rank in range(2)]
    try:
        wait_until_joined(ranks)
        for number in (19, 18):
            for rank in ranks:
                rank.send_signal(number)
            time.sleep(4 if number == 19 else 1.5)
        assert [rank.poll() for rank in ranks] == [None, None]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
