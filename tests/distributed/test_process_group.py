from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

import pytest
import torch

from segformer_spark.distributed.environment import Launch, detect_launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.process_group import process_group
from segformer_spark.errors import UserError
from tests.ranks import Group, context, forked, run_on_ranks


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


def test_a_collective_waits_as_long_as_timeout_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[timedelta] = []

    def join(*args: Any, timeout: timedelta, **options: Any) -> None:
        given.append(timeout)
        raise UserError("enough")

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    with pytest.raises(UserError, match="enough"), process_group(detect_launch({}), torch.device("cpu"), 7.5):
        pass
    assert given == [timedelta(minutes=7.5)]


def in_job(rank: int, world: int, port: int, queue: Any, cpus: set[int], device: Any) -> None:
    os.sched_setaffinity(0, cpus)
    launch = Launch("test", rank, world, rank, world, ("127.0.0.1", port))
    try:
        with process_group(launch, device, 1.0) as group:
            queue.put((rank, group.own_threads))
    except UserError as error:
        queue.put((rank, str(error)))


def job_of(masks: list[set[int]], devices: list[Any]) -> list[Any]:
    """What each rank of a job says, whose ranks have these CPU masks and devices."""
    port, queue = unused_port(), context.Queue()
    for rank, (cpus, device) in enumerate(zip(masks, devices, strict=True)):
        forked(in_job, rank, len(masks), port, queue, cpus, device)
    found = dict(queue.get(timeout=60) for _ in masks)
    return [found[rank] for rank in range(len(masks))]


CPU = torch.device("cpu")


def test_cores_are_divided_only_among_ranks_that_share_them() -> None:
    """Each task with a mask of its own, as srun binds them, and all with one, as --cpu-bind=none leaves them."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    both = {first, second}
    assert job_of([{first}, {second}], [CPU] * 2) == [1, 1]
    assert job_of([both, both], [CPU] * 2) == [1, 1]
    assert job_of([both], [CPU]) == [2]
    assert job_of([both, {second}], [CPU] * 2) == [1, 1]


def no_gpu() -> torch.device:
    raise UserError("a GPU is granted by SLURM_STEP_GPUS=1, and torch sees no GPU")


def test_a_rank_without_its_device_ends_all() -> None:
    cpus = os.sched_getaffinity(0)
    for said in job_of([cpus] * 3, [CPU, no_gpu, CPU]):
        assert said.startswith("rank 1 on ")
        assert "a GPU is granted by SLURM_STEP_GPUS=1" in said
    for said in job_of([cpus] * 2, [CPU, torch.device("cuda", 0)]):
        assert re.search(r"different devices: cpu on rank 0 \(.*\), cuda on rank 1", said)
