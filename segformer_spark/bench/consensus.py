"""What the consensus of the ranks before every step costs, with a stand-in for the GPU: a clock.

A GPU computes while its host launches the next kernels, so that a collective on the host costs nothing as long as the
host is ahead. Here a launch takes the host a given time and the device another; the ranks are processes of this machine
that agree as training does, over gloo, and sleep where a real one would compute.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.process_group import Group, process_group
from segformer_spark.errors import UserError
from segformer_spark.training.consensus import Consensus

Order = Literal["none", "before", "ahead"]
"""No consensus; before the launch of a step; while the step before is launched, as training does on GPUs."""

ORDERS: tuple[Order, ...] = ("none", "before", "ahead")

_WARM_UP = 5


@dataclass(frozen=True)
class StandIn:
    """A training's times, in seconds.

    Attributes:
        launch: what the host takes to launch a step.
        compute: what the device takes for it.
    """

    launch: float
    compute: float


@dataclass(frozen=True)
class ConsensusRow:
    """Milliseconds per step on so many ranks, the median of all steps and ranks, by the order of things."""

    num_ranks: int
    ms: dict[Order, float]


def measure_consensus(num_ranks: Sequence[int], stand_in: StandIn, steps: int) -> Iterator[ConsensusRow]:
    """Rows as they come.

    Raises:
        UserError: a rank failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for count in num_ranks:
        port, queue = unused_port(), context.Queue()
        given = (count, port, stand_in, steps, queue)
        ranks = [context.Process(target=_rank, args=(rank, *given)) for rank in range(count)]
        for process in ranks:
            process.start()
        answers = [queue.get(timeout=600) for _ in ranks]
        for process in ranks:
            process.join()
        failures = [answer for answer in answers if isinstance(answer, str)]
        if failures:
            raise UserError(f"bench consensus: {failures[0]}")
        yield ConsensusRow(
            count, {order: 1000 * statistics.median(s for own in answers for s in own[order]) for order in ORDERS}
        )


def _rank(rank: int, count: int, port: int, stand_in: StandIn, steps: int, queue: Any) -> None:
    torch.set_num_threads(1)
    launch = Launch("bench", rank, count, rank, count, ("127.0.0.1", port) if count > 1 else None)
    try:
        with process_group(launch, torch.device("cpu")) as group:
            queue.put({order: _steps(group, stand_in, steps, order) for order in ORDERS})
            group.barrier()
    except Exception as error:  # noqa: BLE001 - told to the process that asked
        queue.put(f"rank {rank}: {error}")


def _steps(group: Group, stand_in: StandIn, steps: int, order: Order) -> list[float]:
    """Seconds of every step after the first ones, from launch to launch."""
    group.barrier()
    free = time.monotonic()
    finished: list[float] = []
    begun: list[float] = []
    consensus = Consensus(group, [], None, stops=False) if order == "ahead" else None
    for step in range(_WARM_UP + steps):
        if order == "before":
            consensus = Consensus(group, [], None, stops=False)
        if consensus is not None:
            consensus.result()
        if order == "ahead":
            consensus = Consensus(group, [], None, stops=False)
        begun.append(time.monotonic())
        time.sleep(stand_in.launch)
        free = max(free, begun[-1]) + stand_in.compute
        finished.append(free)
        if step > 0:  # the loop reads a step's numbers one step late
            time.sleep(max(0.0, finished[step - 1] - time.monotonic()))
    if order == "ahead" and consensus is not None:
        consensus.wait()
    return [after - before for before, after in zip(begun[_WARM_UP:], begun[_WARM_UP + 1 :], strict=False)]


def describe_consensus(rows: Iterator[ConsensusRow], stand_in: StandIn) -> Iterator[str]:
    """A table, line by line."""
    yield (
        f"consensus of ranks on this machine over gloo; a step takes the host {1000 * stand_in.launch:g} ms to launch "
        f"and the device {1000 * stand_in.compute:g} ms (both a clock); ms per step"
    )
    yield f"{'ranks':>6}{'none':>9}{'before':>9}{'ahead':>9}"
    for row in rows:
        yield f"{row.num_ranks:>6}" + "".join(f"{row.ms[order]:>9.2f}" for order in ORDERS)
