"""Where a training's numbers go. A sink is one small class: console, files; TensorBoard's is in tensorboard.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segformer_spark.data.dataset import Image
from segformer_spark.engine.launched import StepResult
from segformer_spark.run.console import duration, logger
from segformer_spark.run.curves import draw_curves
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog, write_history
from segformer_spark.run.step_log import StepLog
from segformer_spark.training.throughput import IntervalReport


@dataclass(frozen=True)
class ValidationReport:
    """One validation.

    Attributes:
        scalars: defined metrics by name, without counts.
        metric: the one that the best model is chosen by; `is_best`: it rose to its highest.
    """

    step: int
    epoch: int
    scalars: Mapping[str, float]
    seconds: float
    is_best: bool
    metric: str


@dataclass(frozen=True)
class PicturesReport:
    """A validation in pictures.

    Attributes:
        panels: name and picture (Input, Truth, Prediction) of each of the fixed images.
        confusion: pixels, rows truth, columns prediction.
    """

    step: int
    panels: Sequence[tuple[str, Image]]
    confusion: Sequence[Sequence[int]]
    class_names: Sequence[str]


class Sink:
    """Receives reports of rank 0; what a sink has no use for it leaves out.

    What it cannot write it raises as UserError or OSError.
    """

    def start(self, step: int, *, validated: bool) -> None:
        """Continue from `step`, forgetting later reports; `validated`: the validation at `step` itself is done."""

    def step(self, step: int, result: StepResult) -> None:
        """One optimizer step, from 1 on."""

    def flush(self) -> None:
        """Write what was held back: a checkpoint comes."""

    def interval(self, report: IntervalReport) -> None:
        """Some optimizer steps."""

    def validation(self, report: ValidationReport) -> None:
        """A validation."""

    def pictures(self, report: PicturesReport) -> None:
        """Predictions of the fixed images, and the confusion matrix."""

    def hparams(self, values: Mapping[str, Any], metric: str, best: float, step: int) -> None:
        """The settings of the run beside its best score, and the step that had it."""

    def close(self) -> None:
        """Flush everything."""


class ConsoleSink(Sink):
    """Log lines."""

    def interval(self, report: IntervalReport) -> None:
        norm = "-" if report.grad_norm is None else f"{report.grad_norm:.3f}"
        logger.info(
            "step %d/%d  epoch %d  loss %.4f  lr %.2e  grad norm %s  %.1f images/s (%.1f per device)  "
            "ETA %s  memory %.1f GiB%s",
            report.step,
            report.total_steps,
            report.epoch,
            report.loss,
            report.lr,
            norm,
            report.images_per_s,
            report.images_per_s_per_device,
            duration(report.eta_seconds),
            report.memory_gib,
            f"  skipped {report.skipped_steps}" if report.skipped_steps else "",
        )

    def validation(self, report: ValidationReport) -> None:
        shown = dict.fromkeys([report.metric, "spark_score", "miou", "miou_without_background"])
        text = "  ".join(f"{key} {report.scalars[key]:.4f}" for key in shown if key in report.scalars)
        best = "  best so far" if report.is_best else ""
        logger.info("validation at step %d  %s  %s%s", report.step, text, duration(report.seconds), best)


class FileSink(Sink):
    """metrics.jsonl, and made from it history.csv at every validation and curves.png.

    The curves are drawn when training ends, and at validations that come SECONDS_BETWEEN_DRAWINGS after the last
    drawing: it takes rank 0 half a second, for which the other ranks wait.
    """

    SECONDS_BETWEEN_DRAWINGS = 30.0

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.log, self.steps = run, MetricsLog(run.metrics), StepLog(run.steps)
        self.drawn = time.monotonic()

    def start(self, step: int, *, validated: bool) -> None:
        self.log.rewind(step, validated=validated)
        self.steps.rewind(step)

    def step(self, step: int, result: StepResult) -> None:
        self.steps.add(result.loss, result.grad_norm)

    def flush(self) -> None:
        self.steps.flush()

    def interval(self, report: IntervalReport) -> None:
        self.steps.flush()
        row = {"kind": "train", "step": report.step, "epoch": report.epoch, **interval_scalars(report)}
        self.log.append({**row, "num_steps": report.num_steps, "lrs": dict(report.lrs)})

    def validation(self, report: ValidationReport) -> None:
        row = {"kind": "validation", "step": report.step, "epoch": report.epoch, **report.scalars}
        self.log.append({**row, "seconds": round(report.seconds, 2)})
        self._refresh(draw=time.monotonic() - self.drawn >= self.SECONDS_BETWEEN_DRAWINGS)

    def close(self) -> None:
        self.steps.flush()
        self._refresh(draw=True)

    def _refresh(self, *, draw: bool) -> None:
        rows = self.log.rows()
        write_history(rows, self.run.history)
        if draw:
            draw_curves(rows, self.run.curves, self.run.path.name)
            self.drawn = time.monotonic()


INTERVAL_SCALARS = (
    "loss",
    "lr",
    "grad_norm",
    "images_per_s",
    "images_per_s_per_device",
    "memory_gib",
    "skipped_steps",
)


def interval_scalars(report: IntervalReport) -> dict[str, float | None]:
    """The numbers of an interval that are kept, by name."""
    return {name: getattr(report, name) for name in INTERVAL_SCALARS}
