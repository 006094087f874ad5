"""Training throughput of the ranks at hand, as one line of a table over numbers of nodes."""

from __future__ import annotations

import csv
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from segformer_spark.bench.link import measure_link
from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.data.sampler import Position
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.run.atomic import write_csv
from segformer_spark.run.record import host_record
from segformer_spark.run.system import now
from segformer_spark.training.measure import measure_pass, measured_parts, step_seconds
from segformer_spark.training.setup import Setup, prepare

_WARM_UP = 3

Row = dict[str, Any]


def measure_throughput(config: Config, group: Group, num_steps: int) -> Row:
    """Train `num_steps` optimizer steps on the configured data after three that do not count. Collective.

    Loading is part of it, validation and saving are not. A step is as long as that of its slowest rank. Two parts of it
    are measured by themselves, for `bench/scaling_plan.py`: forward and backward passes, on all ranks at the same time,
    and the network.
    """
    setup = prepare(config, group)
    compute = _compute_seconds(config, setup, group)
    link = measure_link(group)
    engine = Engine(setup.model, setup.loss, config, setup.plan, group)
    loader = TrainLoader(setup.train_set, config, setup.sampler, pin=group.device.type == "cuda")
    batches = _endless(loader)
    seconds = []
    try:
        for step in range(_WARM_UP + num_steps):
            group.barrier()
            started = time.perf_counter()
            engine.set_lr(setup.schedule.peak)
            engine.train_step([next(batches) for _ in range(setup.plan.accumulation_steps)], step)
            if group.device.type == "cuda":
                torch.cuda.synchronize(group.device)
            seconds.append(max(group.gather(time.perf_counter() - started)))
    finally:
        loader.close()
        engine.close()
    counted = sorted(seconds[_WARM_UP:])
    median = statistics.median(counted)
    hosts = group.gather(host_record(group.device))
    return {
        "measured": now(),
        "nodes": len({host["host"] for host in hosts}),
        "world_size": group.world_size,
        "device": hosts[0].get("gpu", hosts[0]["cpu"]),
        "variant": config.model.label,
        "image_size": config.data.image_size,
        "precision": config.training.precision,
        "zero_stage": config.deepspeed.zero_stage,
        "micro_batch": setup.plan.micro_batch,
        "accumulation_steps": setup.plan.accumulation_steps,
        "global_batch": setup.plan.global_batch,
        "steps": num_steps,
        "step_ms": round(1000 * median, 2),
        "step_ms_min": round(1000 * counted[0], 2),
        "step_ms_max": round(1000 * counted[-1], 2),
        "images_per_s": round(setup.plan.global_batch / median, 3),
        "images_per_s_per_device": round(setup.plan.global_batch / median / group.world_size, 3),
        "trained_parameters": sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        "compute_ms": round(1000 * compute, 2),
        "link_latency_us": None if link is None else round(1e6 * link.latency, 2),
        "link_gb_per_s": None if link is None else round(link.bandwidth / 1e9, 4),
    }


def _compute_seconds(config: Config, setup: Setup, group: Group) -> float:
    """Forward and backward passes of a step, of the slowest rank while the others compute, too."""
    model, loss = measured_parts(config, setup.train_set.classes.names)
    group.barrier()
    precision, side = config.training.precision, config.data.image_size
    cost = measure_pass(model, loss, setup.plan.micro_batch, side, group.device, precision)
    return float(max(group.gather(step_seconds(config, setup.plan, cost))))


def add_row(path: Path, row: Row, *, strong: bool = False) -> Row:
    """Append a row to the table; returns it with its efficiency: images/s per device over the first such row's.

    Args:
        strong: rows of the same global batch are alike, whatever a rank has of it; else those of the same micro-batch.
    """
    rows = read_rows(path)
    batch = "global_batch" if strong else "micro_batch"
    alike = ("device", "variant", "image_size", "precision", "zero_stage", batch)
    first = next((old for old in rows if all(old[key] == str(row[key]) for key in alike)), None)
    reference = float(first["images_per_s_per_device"]) if first is not None else row["images_per_s_per_device"]
    row = {**row, "efficiency": round(row["images_per_s_per_device"] / reference, 4)}
    write_csv(path, list(row), [*rows, row])
    return row


def describe(row: Row) -> str:
    """One line for the log."""
    return (
        f"{row['nodes']} node(s), {row['world_size']} rank(s): {row['step_ms']} ms per step "
        f"({row['step_ms_min']} to {row['step_ms_max']}), {row['images_per_s']} images/s, "
        f"{row['images_per_s_per_device']} per device, efficiency {100 * row['efficiency']:.1f} %"
    )


def _endless(loader: TrainLoader) -> Iterator[TrainBatch]:
    for epoch in itertools.count():
        loader.sampler.start_at(Position(epoch, 0))
        yield from loader


def read_rows(path: Path) -> list[Row]:
    """The table's rows, all values as text; none without a table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
