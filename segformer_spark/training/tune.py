"""Two searches before a training: a learning rate, and a batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import TrainingDiverged, UserError
from segformer_spark.files.atomic import write_csv, write_json
from segformer_spark.run.console import logger, progress
from segformer_spark.run.figures import new_figure, save_figure
from segformer_spark.training.measure import MemoryEstimate, PassCost, estimate_memory, measure_pass, measured_parts
from segformer_spark.training.setup import Setup, prepare
from segformer_spark.training.stepper import Stepper, open_configured_stepper

_SMOOTHING = 0.9
_DIVERGED = 4.0
_NEAR_BEST = 0.98


@dataclass(frozen=True)
class RangeTest:
    """Learning rates of an LR range test with the loss at each, and its smoothed curve."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls fastest per decade; None when it never falls."""
        slopes = [
            (self.smoothed[i + 1] - self.smoothed[i - 1]) / math.log10(self.rates[i + 1] / self.rates[i - 1])
            for i in range(1, len(self.rates) - 1)
        ]
        if not slopes or min(slopes) >= 0:
            return None
        return self.rates[1 + slopes.index(min(slopes))]


def range_test(rates: Sequence[float], losses: Iterator[float]) -> RangeTest:
    """Follow the losses while they come; ends early once the smoothed loss is four times its lowest.

    Args:
        losses: loss of the step that each rate was used for.
    """
    used: list[float] = []
    seen: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for rate, loss in zip(rates, losses, strict=False):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        used.append(rate)
        seen.append(loss)
        smoothed.append(average / (1 - _SMOOTHING ** len(used)))
        if smoothed[-1] > _DIVERGED * min(smoothed):
            break
    return RangeTest(used, seen, smoothed)


def find_lr(config: Config, group: Group, *, low: float, high: float, num_steps: int, output: Path) -> RangeTest:
    """LR range test (Smith 2017, section 3.3): train with a rising rate. Collective; writes a table and a figure.

    Raises:
        UserError: configuration or data cannot be used.
    """
    if not 0 < low < high or num_steps < 5:
        raise UserError("tune lr: the rates must rise from above 0, over at least 5 steps")
    setup = prepare(config, group)
    rates = [float(rate) for rate in np.geomspace(low, high, num_steps)]
    with open_configured_stepper(config, setup, group) as stepper:
        result = range_test(rates, _losses(stepper, group, rates))
    if not result.rates:
        raise UserError(f"tune lr: the loss is not finite at the first rate already, {low:g}; lower --low or use fp32")
    group.on_main(lambda: _write_range(result, config, setup, output))
    return result


def _losses(stepper: Stepper, group: Group, rates: list[float]) -> Iterator[float]:
    bar = progress(rates, total=len(rates), label="lr range", visible=group.is_main)
    for step, rate in enumerate(bar):
        try:
            result = stepper.step(rate)
        except TrainingDiverged:
            return
        if group.is_main and (step + 1) % 10 == 0:
            logger.info("step %d/%d  lr %.2e  loss %.4f", step + 1, len(rates), rate, result.loss)
        yield result.loss


def _write_range(result: RangeTest, config: Config, setup: Setup, output: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"lr": lr, "loss": loss, "smoothed": smooth}
        for lr, loss, smooth in zip(result.rates, result.losses, result.smoothed, strict=True)
    ]
    write_csv(output / "lr_range.csv", ["lr", "loss", "smoothed"], rows)
    write_json(
        output / "lr_range.json",
        {"suggestion": result.suggestion, "configured": config.training.optimizer.lr, "batch": str(setup.plan)},
    )
    figure = new_figure(6.5, 3.8)
    axis = figure.subplots()
    axis.plot(result.rates, result.losses, color="0.75", linewidth=0.8, label="loss of a step")
    axis.plot(result.rates, result.smoothed, label="smoothed")
    for value, label, color in (
        (result.suggestion, "steepest fall", "tab:green"),
        (config.training.optimizer.lr, "configured", "tab:orange"),
    ):
        if value is not None:
            axis.axvline(value, color=color, linestyle="--", label=f"{label}: {value:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="LR range test")
    top = 1.2 * max(result.smoothed[: max(1, len(result.smoothed) // 2)])
    axis.set_ylim(0, top)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    save_figure(figure, output / "lr_range.png")


@dataclass(frozen=True)
class BatchTrial:
    """One micro-batch size: time of a pass, images per second, and memory of a step on one device.

    Attributes:
        memory_gib: weights, gradients, states and activations; `activations_gib` is what grows with the images.
    """

    micro_batch: int
    seconds: float
    images_per_s: float
    memory_gib: float
    activations_gib: float

    @property
    def memory_of_twice(self) -> float:
        """Memory of twice as many images."""
        return self.memory_gib + self.activations_gib


def find_batch_size(
    config: Config, class_names: Sequence[str], group: Group, *, limit_gib: float | None, largest: int
) -> list[BatchTrial]:
    """Measure micro-batches of 1 (or the model's smallest), 2, 4 ... until memory runs out, on this rank's device.

    Args:
        limit_gib: memory that may be used; None takes the GPU's whole memory, or 80 % of what the machine has free.
    """
    model, loss = measured_parts(config, class_names)
    if limit_gib is None:
        limit_gib = _available(group.device) / 2**30
    trials: list[BatchTrial] = []
    micro, library_bytes = model.min_batch, 0
    while micro <= largest:
        if trials and trials[-1].memory_of_twice > limit_gib:
            expected = trials[-1].memory_of_twice
            logger.info("%d images would take about %.1f GiB, %.1f are allowed", micro, expected, limit_gib)
            break
        try:
            cost = measure_pass(model, loss, micro, config.data.input_size, group.device, config.training.precision)
        except torch.cuda.OutOfMemoryError:
            logger.info("%d images do not fit", micro)
            break
        library_bytes = library_bytes or cost.library_bytes  # only the first pass of a process finds them
        cost = replace(cost, library_bytes=library_bytes)
        trials.append(_trial(cost, estimate_memory(model, config, BatchPlan(micro, 1, group.world_size), cost)))
        logger.info(
            "micro-batch %d  %.2f s  %.2f images/s  %.2f GiB",
            micro,
            cost.seconds,
            trials[-1].images_per_s,
            trials[-1].memory_gib,
        )
        micro *= 2
    return trials


def _available(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return 0.8 * float(psutil.virtual_memory().available)


def _trial(cost: PassCost, memory: MemoryEstimate) -> BatchTrial:
    """What grows with the images is what is kept and the workspace."""
    growing, gib = memory.activations + memory.workspace, 2**30
    return BatchTrial(cost.num_images, cost.seconds, cost.num_images / cost.seconds, memory.total / gib, growing / gib)


def recommend(trials: Sequence[BatchTrial]) -> BatchTrial:
    """The smallest micro-batch within 2 % of the best throughput.

    Raises:
        UserError: not even one image fits.
    """
    if not trials:
        raise UserError("tune batch-size: not even one image fits; lower data.image_size or take a smaller variant")
    best = max(trial.images_per_s for trial in trials)
    return next(trial for trial in trials if trial.images_per_s >= _NEAR_BEST * best)


def write_batch_sizes(trials: Sequence[BatchTrial], output: Path) -> None:
    """batch_size.csv."""
    write_csv(output / "batch_size.csv", list(asdict(trials[0])), [asdict(trial) for trial in trials])
