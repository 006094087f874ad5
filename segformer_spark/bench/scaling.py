"""Training throughput of the ranks at hand, as one row of a table over numbers of nodes."""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from segformer_spark.bench.interconnect import measure_interconnect
from segformer_spark.config.image_size import parse_size, size_text
from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_csv
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now
from segformer_spark.training.measure import measure_pass, measured_parts, step_seconds
from segformer_spark.training.setup import Setup, prepare
from segformer_spark.training.stepper import open_configured_stepper

_WARM_UP = 3


def _undefined(value: Any) -> Any:
    return None if value == "" else value


def _as_size_text(value: Any) -> str:
    return size_text(parse_size(value))


_OptionalInt = Annotated[int | None, BeforeValidator(_undefined)]
_OptionalFloat = Annotated[float | None, BeforeValidator(_undefined)]


class ScalingRow(BaseModel):
    """One row of the table: a training, and how fast the ranks at hand ran it.

    Attributes:
        step_ms, step_ms_min, step_ms_max: median and range of the steps, each as long as that of its slowest rank.
        compute_ms: forward and backward passes of a step by themselves; None in tables of earlier versions.
        interconnect_latency_us, interconnect_gb_per_s: None for one rank alone; `link_*` in tables before 0.2.
        efficiency: images/s per device over that of the first row of the same training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    measured: str = ""
    nodes: int
    world_size: int
    device: str
    variant: str
    image_size: Annotated[str, BeforeValidator(_as_size_text)]
    precision: str
    zero_stage: int
    micro_batch: int
    accumulation_steps: _OptionalInt = None
    global_batch: int
    steps: _OptionalInt = None
    step_ms: float
    step_ms_min: _OptionalFloat = None
    step_ms_max: _OptionalFloat = None
    images_per_s: float
    images_per_s_per_device: float
    trained_parameters: _OptionalInt = None
    compute_ms: _OptionalFloat = None
    interconnect_latency_us: _OptionalFloat = Field(
        None, validation_alias=AliasChoices("interconnect_latency_us", "link_latency_us")
    )
    interconnect_gb_per_s: _OptionalFloat = Field(
        None, validation_alias=AliasChoices("interconnect_gb_per_s", "link_gb_per_s")
    )
    efficiency: _OptionalFloat = None


def measure_throughput(config: Config, group: Group, num_steps: int) -> ScalingRow:
    """Train `num_steps` optimizer steps on the configured data after three that do not count. Collective.

    Loading is part of it, validation and saving are not. A step is as long as that of its slowest rank. Two parts of it
    are measured by themselves, for `bench/scaling_plan.py`: forward and backward passes, on all ranks at the same time,
    and the interconnect.
    """
    setup = prepare(config, group)
    compute = _compute_seconds(config, setup, group)
    interconnect = measure_interconnect(group)
    seconds = []
    with open_configured_stepper(config, setup, group) as stepper:
        for _ in range(_WARM_UP + num_steps):
            group.barrier()
            started = time.perf_counter()
            stepper.step(setup.schedule.peak)
            if group.device.type == "cuda":
                torch.cuda.synchronize(group.device)
            seconds.append(max(group.gather(time.perf_counter() - started)))
    counted = sorted(seconds[_WARM_UP:])
    median = statistics.median(counted)
    hosts = group.gather(host_record(group.device))
    return ScalingRow(
        measured=now(),
        nodes=len({host["host"] for host in hosts}),
        world_size=group.world_size,
        device=hosts[0].get("gpu", hosts[0]["cpu"]),
        variant=config.model.label,
        image_size=size_text(config.data.image_size),
        precision=config.training.precision,
        zero_stage=config.deepspeed.zero_stage,
        micro_batch=setup.plan.micro_batch,
        accumulation_steps=setup.plan.accumulation_steps,
        global_batch=setup.plan.global_batch,
        steps=num_steps,
        step_ms=round(1000 * median, 2),
        step_ms_min=round(1000 * counted[0], 2),
        step_ms_max=round(1000 * counted[-1], 2),
        images_per_s=round(setup.plan.global_batch / median, 3),
        images_per_s_per_device=round(setup.plan.global_batch / median / group.world_size, 3),
        trained_parameters=sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        compute_ms=round(1000 * compute, 2),
        interconnect_latency_us=None if interconnect is None else round(1e6 * interconnect.latency, 2),
        interconnect_gb_per_s=None if interconnect is None else round(interconnect.bandwidth / 1e9, 4),
    )


def _compute_seconds(config: Config, setup: Setup, group: Group) -> float:
    """Forward and backward passes of a step, of the slowest rank while the others compute, too."""
    model, loss = measured_parts(config, setup.train_set.classes.names)
    group.barrier()
    precision, size = config.training.precision, config.data.input_size
    cost = measure_pass(model, loss, setup.plan.micro_batch, size, group.device, precision)
    return float(max(group.gather(step_seconds(config, setup.plan, cost))))


def add_row(path: Path, row: ScalingRow, *, strong: bool = False) -> ScalingRow:
    """Append a row to the table; returns it with its efficiency: images/s per device over the first such row's.

    Args:
        strong: rows of the same global batch are alike, whatever a rank has of it; else those of the same micro-batch.

    Raises:
        UserError: the table cannot be read.
    """
    rows = read_rows(path)
    batch = "global_batch" if strong else "micro_batch"
    alike = ("device", "variant", "image_size", "precision", "zero_stage", batch)
    first = next((old for old in rows if all(getattr(old, key) == getattr(row, key) for key in alike)), row)
    efficiency = round(row.images_per_s_per_device / first.images_per_s_per_device, 4)
    row = row.model_copy(update={"efficiency": efficiency})
    write_csv(path, list(ScalingRow.model_fields), [one.model_dump() for one in (*rows, row)])
    return row


def describe(row: ScalingRow) -> str:
    """One line for the log."""
    return (
        f"{row.nodes} node(s), {row.world_size} rank(s): {row.step_ms} ms per step "
        f"({row.step_ms_min} to {row.step_ms_max}), {row.images_per_s} images/s, "
        f"{row.images_per_s_per_device} per device, efficiency {100 * (row.efficiency or 0):.1f} %"
    )


def read_rows(path: Path) -> list[ScalingRow]:
    """The table's rows; none without a table.

    Raises:
        UserError: a row that is not one of `bench scaling`; with file and line.
    """
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        for raw in reader:
            try:
                rows.append(ScalingRow.model_validate(raw))
            except ValidationError as error:
                first = error.errors()[0]
                column = ".".join(str(part) for part in first["loc"])
                where = f"{path}:{reader.line_num}: {column}"
                raise UserError(f"{where}: {first['msg'].lower()}: no table of `bench scaling`") from error
    return rows
