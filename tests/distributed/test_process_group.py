from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch

from segformer_spark.distributed.environment import detect_launch
from segformer_spark.distributed.process_group import choose_device, process_group, set_threads
from segformer_spark.errors import UserError
from tests.ranks import Group, run_on_ranks


def collect(group: Group) -> dict[str, Any]:
    value = torch.tensor([float(group.rank + 1)], requires_grad=True)
    total = group.differentiable_sum(value * value)
    total.backward()
    before = torch.tensor([1])
    return {
        "any": (group.any(False), group.any(group.rank == group.world_size - 1)),
        "broadcast": group.broadcast(f"rank {group.rank}"),
        "gather": group.gather(group.rank),
        "sum": int(group.sum(before)),
        "unchanged": int(before),
        "total": float(total),
        "gradient": float(value.grad),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_collectives(world: int) -> None:
    for rank, result in enumerate(run_on_ranks(world, collect)):
        assert result["any"] == (False, True)
        assert result["broadcast"] == "rank 0"
        assert result["gather"] == list(range(world))
        assert result["sum"] == world
        assert result["unchanged"] == 1
        assert result["total"] == sum((r + 1) ** 2 for r in range(world))
        assert result["gradient"] == 2 * (rank + 1) * world, "identity times the world size"


def fail_on_main(group: Group) -> str:
    def action() -> None:
        raise UserError("disk full")

    try:
        group.on_main(action)
    except UserError as error:
        return str(error)
    return "no error"


def test_an_error_of_rank_0_is_raised_everywhere() -> None:
    assert run_on_ranks(2, fail_on_main) == ["disk full", "disk full"]


def ran_on(group: Group) -> tuple[int, int]:
    calls = []
    value = group.on_main(lambda: calls.append(1) or 7)
    return value, len(calls)


def test_main_only_runs_once_and_shares_the_value() -> None:
    assert run_on_ranks(3, ran_on) == [(7, 1), (7, 0), (7, 0)]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", 0).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 3).type == "cpu"
    with pytest.raises(UserError, match="torch sees no GPU"):
        choose_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 3) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="local rank 4 .* has no GPU"):
        choose_device("auto", 4)


def threads(group: Group, requested: int | None, ranks: int) -> tuple[int, int]:
    return set_threads(requested, ranks), torch.get_num_threads()


def test_threads_are_those_asked_for_or_a_share_of_the_cores() -> None:
    """hardware.threads"""
    cores = len(os.sched_getaffinity(0))
    assert run_on_ranks(1, threads, 3, 2) == [(3, 3)]
    assert run_on_ranks(1, threads, None, 2) == [(max(1, cores // 2),) * 2]


def test_a_collective_waits_as_long_as_timeout_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[timedelta] = []

    def join(*args: Any, timeout: timedelta, **options: Any) -> None:
        given.append(timeout)
        raise UserError("enough")

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    with pytest.raises(UserError, match="enough"), process_group(detect_launch({}), torch.device("cpu"), 7.5):
        pass
    assert given == [timedelta(minutes=7.5)]


def test_one_gpu_bound_to_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_GPUS", "2")
    assert choose_device("cuda", 2) == torch.device("cuda", 0)
    monkeypatch.delenv("SLURM_STEP_GPUS")
    with pytest.raises(UserError, match="has no GPU"):
        choose_device("cuda", 2)
