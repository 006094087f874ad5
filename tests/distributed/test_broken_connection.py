from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist

from segformer_spark.distributed.broken_connection import broken_connection
from segformer_spark.distributed.process_group import Group
from tests.ranks import start_on_ranks


def _lose_a_peer(group: Group) -> str | None:
    dist.all_reduce(torch.ones(1))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(100):
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        why = broken_connection(error)
        assert why is not None, error
        os._exit(40)
    return None


def test_what_gloo_raises_when_a_peer_is_gone_is_known() -> None:
    ranks = start_on_ranks(2, _lose_a_peer)
    for process in ranks.processes:
        process.join(60)
    assert [process.exitcode for process in ranks.processes] == [40, -signal.SIGKILL]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("gloo: Connection closed"), OSError()])
def test_other_errors_are_not(error: Exception) -> None:
    assert broken_connection(error) is None
