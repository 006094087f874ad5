"""What more nodes would give, from a few measured rows: step = compute + communication.

Compute is that of forward and backward passes as `bench scaling` timed them, on nodes as full, with a share for all
else that a rank does (loading, optimizer); that share is what a step of the fewest ranks took beyond passes and
communication. Communication is what the stages send: an all-reduce of all gradients, under ZeRO-1 and ZeRO-2 an
all-gather of the updated weights too, and some small messages. Nothing of it is hidden behind the backward pass
(ds_configs/ has overlap_comm off). Slower ranks, other jobs on the network and the file system are not part of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segformer_spark.bench.interconnect import Interconnect
from segformer_spark.bench.scaling import ScalingRow, read_rows
from segformer_spark.config.image_size import size_text
from segformer_spark.config.schema import Config
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_csv
from segformer_spark.run.figures import new_figure, save_figure

_SMALL_MESSAGES = {0: 5, 1: 12, 2: 12}
"""Messages of a step besides the gradients, by stage: batch norm 3, loss, gradient norm; ZeRO gathers and flags."""


@dataclass(frozen=True)
class StepModel:
    """Time of a step over numbers of ranks.

    Attributes:
        overhead: a rank's other work, relative to its passes.
        num_bytes: of the gradients, as they are sent.
    """

    overhead: float
    num_bytes: int
    zero_stage: int

    def communication(self, ranks: int, interconnect: Interconnect | None) -> float:
        """Seconds per step; without a network for one rank alone."""
        if ranks == 1:
            return 0.0
        assert interconnect is not None
        gathered = interconnect.all_gather(ranks, self.num_bytes) if self.zero_stage else 0.0
        small = _SMALL_MESSAGES[self.zero_stage] * interconnect.all_reduce(ranks, 0)
        return interconnect.all_reduce(ranks, self.num_bytes) + gathered + small

    def compute(self, passes: float) -> float:
        """Seconds of a rank's own work when its passes take so many."""
        return passes * (1 + self.overhead)


@dataclass(frozen=True)
class Forecast:
    """One number of nodes."""

    nodes: int
    ranks: int
    global_batch: float
    compute: float
    communication: float

    @property
    def images_per_s(self) -> float:
        return self.global_batch / (self.compute + self.communication)


@dataclass(frozen=True)
class ScalingPlan:
    """A model with what it was made from and what it says.

    Attributes:
        interconnect: the network of the forecast over nodes; None where there is none.
        references: the measured rows that the overhead is the median of: those of the fewest ranks.
        checked: measured rows of the same training, with the seconds that the model gives for them.
    """

    model: StepModel
    interconnect: Interconnect | None
    references: Sequence[ScalingRow]
    checked: Sequence[tuple[ScalingRow, float]]
    forecasts: Sequence[Forecast]


def make_plan(
    path: Path, config: Config, *, nodes: int, interconnect: Interconnect | None, strong: bool
) -> ScalingPlan:
    """Fit the model to the rows of a table and look ahead, to 1, 2, 4 ... nodes with as many ranks as measured.

    Args:
        path: table of `bench scaling`.
        interconnect: the network to plan for, in place of the one that was measured over most nodes. Measured rows are
            checked with their own.
        strong: keep the measured global batch; else each rank's.

    Raises:
        UserError: the table has no such training, or no network was measured or given.
    """
    training = (
        config.model.label,
        size_text(config.data.image_size),
        config.training.precision,
        config.deepspeed.zero_stage,
    )
    # Tables of earlier versions have rows without their parts.
    measured = [row for row in read_rows(path) if row.compute_ms and row.trained_parameters]
    rows = [row for row in measured if (row.variant, row.image_size, row.precision, row.zero_stage) == training]
    if not rows:
        variant, size, precision, stage = training
        raise UserError(
            f"{path}: there is no row of {variant}, {size} px, {precision}, ZeRO stage {stage}",
            "Measure one, on one node and best on two: segformer-spark bench scaling --config ..., "
            "or sbatch --nodes=2 slurm/benchmark_scaling.sh",
        )
    rows = [row for row in rows if row.device == rows[-1].device]
    fewest = min(row.world_size for row in rows)
    references = [row for row in rows if row.world_size == fewest]
    interconnect = interconnect or _widest_interconnect(rows)
    if interconnect is None and nodes > 1:
        raise UserError(
            f"{path}: no interconnect was measured",
            "Run `bench scaling` on two nodes, or give --bandwidth and --latency",
        )
    model = _fit(references)
    checked = [
        (row, model.compute(_passes(row)) + model.communication(row.world_size, _interconnect_of(row))) for row in rows
    ]
    return ScalingPlan(
        model, interconnect, references, checked, list(_forecasts(model, rows, nodes, interconnect, strong))
    )


def _interconnect_of(row: ScalingRow) -> Interconnect | None:
    if not row.interconnect_gb_per_s or row.interconnect_latency_us is None:
        return None
    return Interconnect(row.interconnect_latency_us / 1e6, row.interconnect_gb_per_s * 1e9)


def _widest_interconnect(rows: Sequence[ScalingRow]) -> Interconnect | None:
    """Of the newest row with most nodes and ranks that has one."""
    measured = [row for row in rows if row.interconnect_gb_per_s]
    if not measured:
        return None
    return _interconnect_of(max(reversed(measured), key=lambda row: (row.nodes, row.world_size)))


def _fit(rows: Sequence[ScalingRow]) -> StepModel:
    width = 2 if rows[0].precision == "fp16" else 4
    stage = rows[0].zero_stage
    assert rows[0].trained_parameters is not None
    model = StepModel(0.0, width * rows[0].trained_parameters, stage)
    overheads = [
        (row.step_ms / 1000 - model.communication(row.world_size, _interconnect_of(row))) / _passes(row) - 1
        for row in rows
    ]
    overhead = statistics.median(overheads)
    if overhead <= -1:
        raise UserError(
            f"the measured steps of {rows[0].world_size} rank(s) are shorter than their communication by the "
            "measured network: measure again on a quiet machine"
        )
    return replace(model, overhead=overhead)


def _passes(row: ScalingRow) -> float:
    assert row.compute_ms is not None
    return row.compute_ms / 1000


def _forecasts(
    model: StepModel, rows: Sequence[ScalingRow], nodes: int, interconnect: Interconnect | None, strong: bool
) -> Iterator[Forecast]:
    """Nodes as full as the fullest that was measured; one node has a network of its own where that was measured."""
    even = [row for row in rows if row.world_size % row.nodes == 0]
    if not even:
        raise UserError("the measured rows have nodes with unequal numbers of ranks: measure with as many on each")
    per_node = max(row.world_size // row.nodes for row in even)
    full = [row for row in even if row.world_size // row.nodes == per_node]
    inside = _widest_interconnect([row for row in full if row.nodes == 1]) or interconnect
    passes = statistics.median(_passes(row) / _images(row) for row in full)
    count = 1
    while count <= nodes:
        ranks = count * per_node
        images = full[-1].global_batch / ranks if strong else _images(full[-1])
        if images < 1:
            return
        communication = model.communication(ranks, inside if count == 1 else interconnect)
        yield Forecast(count, ranks, images * ranks, model.compute(passes * images), communication)
        count = nodes if count < nodes < 2 * count else 2 * count


def _images(row: ScalingRow) -> float:
    return row.global_batch / row.world_size


def describe_plan(plan: ScalingPlan) -> Iterator[str]:
    """Lines for the terminal."""
    row, model = plan.references[-1], plan.model
    yield (
        f"SegFormer-{str(row.variant).upper()}, {row.image_size} px, {row.precision}, ZeRO stage "
        f"{model.zero_stage}, on {row.device}"
    )
    yield (
        f"a rank's work beside its passes: {100 * model.overhead:+.0f} %, from {len(plan.references)} row(s) of "
        f"{row.world_size} rank(s), the last of {row.measured}; gradients: {model.num_bytes / 2**20:.0f} MiB"
    )
    if plan.interconnect is not None:
        bandwidth, latency = plan.interconnect.bandwidth / 1e9, 1e6 * plan.interconnect.latency
        yield f"interconnect: {bandwidth:.2f} GB/s per rank, {latency:.0f} us per message"
    yield "measured and modelled:"
    yield f"{'nodes':>6}{'ranks':>6}{'batch':>7}{'measured ms':>13}{'model ms':>10}{'off by':>8}"
    for measured, seconds in plan.checked:
        step = measured.step_ms
        yield (
            f"{measured.nodes:>6}{measured.world_size:>6}{measured.global_batch:>7}{step:>13.1f}"
            f"{1000 * seconds:>10.1f}{100 * (1000 * seconds / step - 1):>+7.0f} %"
        )
    yield "forecast:"
    yield f"{'nodes':>6}{'ranks':>6}{'batch':>7}{'compute ms':>12}{'network ms':>12}{'images/s':>10}{'efficiency':>12}"
    first = plan.forecasts[0]
    for one in plan.forecasts:
        efficiency = one.images_per_s / one.ranks / (first.images_per_s / first.ranks)
        yield (
            f"{one.nodes:>6}{one.ranks:>6}{one.global_batch:>7.0f}{1000 * one.compute:>12.1f}"
            f"{1000 * one.communication:>12.1f}{one.images_per_s:>10.1f}{100 * efficiency:>10.1f} %"
        )


def write_plan(plan: ScalingPlan, table: Path) -> list[Path]:
    """The forecast as CSV and a figure beside the table; returns both."""
    csv_path, figure_path = table.with_suffix(".plan.csv"), table.with_suffix(".plan.png")
    columns = ["nodes", "ranks", "global_batch", "compute_ms", "communication_ms", "images_per_s"]
    rows = [
        {
            "nodes": one.nodes,
            "ranks": one.ranks,
            "global_batch": round(one.global_batch),
            "compute_ms": round(1000 * one.compute, 2),
            "communication_ms": round(1000 * one.communication, 2),
            "images_per_s": round(one.images_per_s, 3),
        }
        for one in plan.forecasts
    ]
    write_csv(csv_path, columns, rows)
    save_figure(_drawn(plan), figure_path)
    return [csv_path, figure_path]


def _drawn(plan: ScalingPlan) -> Any:
    figure = new_figure(9, 3.6)
    speed, parts = figure.subplots(1, 2)
    ranks = [one.ranks for one in plan.forecasts]
    first = plan.forecasts[0]
    ideal = [first.images_per_s / first.ranks * count for count in ranks]
    speed.plot(ranks, ideal, color="0.7", linestyle="--", label="linear")
    speed.plot(ranks, [one.images_per_s for one in plan.forecasts], marker="o", markersize=3, label="model")
    points = [(row.world_size, row.images_per_s) for row, _ in plan.checked]
    speed.scatter(*zip(*points, strict=True), color="tab:orange", zorder=3, label="measured")
    speed.set(xscale="log", yscale="log", xlabel="ranks", ylabel="images/s", title="throughput")
    shown = sorted({*ranks, *(count for count, _ in points)})
    speed.set_xticks(shown, [str(count) for count in shown])
    speed.minorticks_off()
    labels = [str(one.nodes) for one in plan.forecasts]
    compute = [1000 * one.compute for one in plan.forecasts]
    parts.bar(labels, compute, color="tab:blue", label="compute")
    communication = [1000 * one.communication for one in plan.forecasts]
    parts.bar(labels, communication, bottom=compute, color="tab:red", label="communication")
    parts.set(xlabel="nodes", ylabel="ms per step", title="a step")
    parts.set_ylim(0, 1.25 * max(one + other for one, other in zip(compute, communication, strict=True)))
    for axis in (speed, parts):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="upper left", ncols=2)
    return figure
