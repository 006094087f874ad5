"""`compare list --estimate`: the hours of a whole study, from runs that are finished and estimates of the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segformer_spark.bench.roofline.configured import estimate_step
from segformer_spark.bench.roofline.device_models import DeviceModel
from segformer_spark.config.batch import plan_batches
from segformer_spark.config.schema import Config
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from segformer_spark.run.listing import record_of
from segformer_spark.study.collect import device_of
from segformer_spark.study.execute import PlannedRun
from segformer_spark.training.plan import plan_steps

_USUAL_CLASSES = 19
"""As Cityscapes has: where the data set is not here."""

_UNITS = {"h": 1.0, "d": 24.0, "m": 1 / 60}


@dataclass(frozen=True)
class RunHours:
    """Hours of one device that a run took, or may take.

    Attributes:
        hours: None where nothing is known.
        source: what they are of: a device's name, or how they were estimated.
        finished: whether they are spent.
    """

    name: str
    hours: float | None
    source: str
    finished: bool


def read_budget(text: str) -> float:
    """Hours of "50h", "2d", "90m" or "50".

    Raises:
        ValueError: it is none of these.
    """
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdm]?)", text.strip(), re.ASCII)
    if written is None:
        raise ValueError(f"{text!r} is no time; write 50h, 2d or 90m")
    return float(written[1]) * _UNITS[written[2] or "h"]


def run_hours(
    planned: Sequence[PlannedRun], device: DeviceModel | None, num_images: int | None = None
) -> list[RunHours]:
    """What each run took, or would take on `device`, of which the estimate counts training steps alone.

    Args:
        device: None estimates nothing.
        num_images: training images, where the data set is not here.
    """
    found = []
    for one in planned:
        if one.is_finished:
            record = record_of(one.directory)
            seconds = sum(record["seconds_per_epoch"]) * record["runtime"]["world_size"]
            found.append(RunHours(one.run.name, seconds / 3600, device_of(record), True))
            continue
        hours, source = None, "no estimate without --device-model"
        if device is not None:
            hours, source = _estimated(one.resolved.config, device, num_images)
        found.append(RunHours(one.run.name, hours, source, False))
    return found


def _estimated(config: Config, device: DeviceModel, num_images: int | None) -> tuple[float | None, str]:
    """Hours, and what was estimated or why it could not be."""
    assumed = ""
    try:
        images, classes = _facts(config)
    except DataError as error:
        if num_images is None:
            return None, f"no estimate: {error.problem}; give the number of training images with --num-images"
        images, classes = num_images, config.model.num_classes or _USUAL_CLASSES
        assumed = f", {images} images and {classes} classes assumed"
    plan = plan_batches(config.training, 1)
    steps = plan_steps(config, plan.steps_per_epoch(images))
    seconds = estimate_step(config, classes, device).seconds(config, plan.accumulation_steps)
    return steps * seconds / 3600, f"estimate for {device.name}, training steps alone{assumed}"


def _facts(config: Config) -> tuple[int, int]:
    """Training images and classes."""
    dataset = open_dataset(config.data, config.data.train_split, check_files=False)
    return len(dataset), len(dataset.classes)


def describe_hours(runs: Sequence[RunHours], budget: float | None) -> Iterator[str]:
    """A line per run, sums by device, and what of the budget is left."""
    width = max(len(one.name) for one in runs)
    for one in runs:
        hours = "?" if one.hours is None else f"{one.hours:.2f}"
        yield f"{one.name:<{width}}  {'finished' if one.finished else 'to train':<9}{hours:>9} h  {one.source}"
    for source in dict.fromkeys(one.source for one in runs if one.hours is not None):
        own = [one.hours or 0.0 for one in runs if one.source == source]
        kind = "CPU-hours" if source.startswith("CPU") else "GPU-hours"
        yield f"{sum(own):.2f} {kind} in {len(own)} runs: {source}"
    unknown = sum(one.hours is None for one in runs)
    if unknown:
        yield f"{unknown} of {len(runs)} runs are not counted"
    if budget is None:
        return
    yield from _against(budget, [one for one in runs if not one.source.startswith("CPU")], unknown)


def _against(budget: float, runs: Sequence[RunHours], unknown: int) -> Iterator[str]:
    """GPU-hours against the budget; those of a CPU say nothing about it."""
    spent = sum(one.hours or 0.0 for one in runs if one.finished)
    ahead = sum(one.hours or 0.0 for one in runs if not one.finished)
    left = budget - spent
    yield f"budget {budget:.1f} GPU-hours: {spent:.2f} spent, {left:.2f} left, {ahead:.2f} to come"
    if unknown:
        yield "whether it suffices cannot be said: not all runs are counted"
    elif ahead > left:
        yield f"it does not suffice: {ahead - left:.2f} GPU-hours are missing"
    else:
        yield f"it suffices: {left - ahead:.2f} GPU-hours remain"
