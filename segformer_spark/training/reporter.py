"""What rank 0 tells the user while training: log lines, metrics.jsonl, history.csv, TensorBoard, curves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import torch

from segformer_spark.data.dataset import Image
from segformer_spark.engine.engine import StepResult
from segformer_spark.errors import UserError
from segformer_spark.run.atomic import write_error
from segformer_spark.run.console import duration, logger
from segformer_spark.run.curves import draw_curves
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog, write_history

if TYPE_CHECKING:
    from segformer_spark.training.board import Board


@dataclass
class _Interval:
    """Steps since the last log line."""

    started: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    excluded: float = 0.0


class Reporter:
    """Writes the run's figures; on other ranks than 0 every call does nothing.

    A write that fails (full disk) is held in `failure`: rank 0 must not leave the others waiting in a collective, so
    the loop raises it where all ranks meet.
    """

    failure: UserError | None = None

    def __init__(
        self,
        run: RunDirectory,
        *,
        enabled: bool,
        tensorboard: bool,
        every: int,
        global_batch: int,
        world_size: int,
        total_steps: int,
        device: torch.device,
    ) -> None:
        self.run, self.enabled, self.every = run, enabled, every
        self.global_batch, self.world_size, self.total_steps, self.device = (
            global_batch,
            world_size,
            total_steps,
            device,
        )
        self.log = MetricsLog(run.metrics)
        self.use_tensorboard = tensorboard and enabled
        self._board: Board | None = None
        self._interval = _Interval()
        self._seconds_per_step: float | None = None

    def start(self, step: int, *, validated: bool) -> None:
        """Begin, or go on from `step`, forgetting what was logged after it. Raises UserError when it cannot write."""
        if not self.enabled:
            return
        self.log.rewind(step, validated=validated)
        if self.use_tensorboard:
            from segformer_spark.training.board import Board

            self._board = Board(self.run.tensorboard, purge_step=step + 1 if step else None)
        self._interval = _Interval()

    def step(self, step: int, epoch: int, lr: float, lrs: Mapping[str, float], result: StepResult) -> None:
        """Count one optimizer step; every N-th writes a line.

        Args:
            lr: before the groups' multipliers; `lrs` after them, by group.
        """
        interval = self._interval
        interval.losses.append(result.loss)
        if result.grad_norm is not None:
            interval.norms.append(result.grad_norm)
        interval.skipped += not result.applied
        if self.enabled and (step % self.every == 0 or step == self.total_steps):
            with self._holding_failures():
                self._write_interval(step, epoch, lr, lrs)
            self._interval = _Interval()

    def exclude(self, seconds: float) -> None:
        """Leave time spent on validation or saving out of the throughput."""
        self._interval.excluded += seconds

    def validation(
        self, step: int, epoch: int, scalars: Mapping[str, float], seconds: float, *, best: bool, metric: str
    ) -> None:
        """Write a validation's figures, and the table and curves made from all of them."""
        if not self.enabled:
            return
        with self._holding_failures():
            named = {key: value for key, value in scalars.items() if not key.startswith("num_")}
            self.log.append({"kind": "validation", "step": step, "epoch": epoch, **named, "seconds": round(seconds, 2)})
            shown = dict.fromkeys([metric, "spark_score", "miou", "miou_without_background"])
            text = "  ".join(f"{key} {named[key]:.4f}" for key in shown if key in named)
            logger.info(
                "validation at step %d  %s  %s%s", step, text, duration(seconds), "  best so far" if best else ""
            )
            self._scalars({_tag(key): value for key, value in named.items()}, step)
            self.refresh()

    def pictures(
        self,
        step: int,
        panels: Sequence[tuple[str, Image]],
        confusion: Sequence[Sequence[int]],
        class_names: Sequence[str],
    ) -> None:
        """Draw the fixed images' predictions and the confusion matrix in TensorBoard."""
        if self._board is not None:
            with self._holding_failures():
                self._board.pictures(panels, step)
                self._board.confusion(confusion, class_names, step)

    def hparams(self, values: Mapping[str, Any], metric: str, best: float) -> None:
        """Put the settings beside the best score in TensorBoard."""
        if self._board is not None:
            with self._holding_failures():
                self._board.hparams(values, (metric, best))

    def refresh(self) -> None:
        """Write history.csv and curves.png anew from metrics.jsonl."""
        if not self.enabled:
            return
        rows = self.log.rows()
        write_history(rows, self.run.history)
        draw_curves(rows, self.run.curves, self.run.path.name)

    def close(self) -> None:
        """Flush everything."""
        self.refresh()
        if self._board is not None:
            self._board.close()

    @contextmanager
    def _holding_failures(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.failure = self.failure or error
        except OSError as error:  # TensorBoard's own
            self.failure = self.failure or write_error(self.run.tensorboard, error)

    def _write_interval(self, step: int, epoch: int, lr: float, lrs: Mapping[str, float]) -> None:
        interval = self._interval
        num_steps = len(interval.losses)
        seconds = max(time.monotonic() - interval.started - interval.excluded, 1e-9)
        recent = seconds / num_steps
        # Smoothed, so that one slow interval does not swing the estimate.
        self._seconds_per_step = (
            recent if self._seconds_per_step is None else 0.7 * self._seconds_per_step + 0.3 * recent
        )
        row = {
            "loss": sum(interval.losses) / num_steps,
            "lr": lr,
            "grad_norm": sum(interval.norms) / len(interval.norms) if interval.norms else None,
            "images_per_s": self.global_batch / recent,
            "images_per_s_per_device": self.global_batch / recent / self.world_size,
            "memory_gib": self._memory(),
            "skipped_steps": interval.skipped,
        }
        self.log.append({"kind": "train", "step": step, "epoch": epoch, **row})
        self._scalars({f"train/{key}": value for key, value in row.items()}, step)
        self._scalars({f"lr/{name}": value for name, value in lrs.items()}, step)
        norm = "-" if row["grad_norm"] is None else f"{row['grad_norm']:.3f}"
        logger.info(
            "step %d/%d  epoch %d  loss %.4f  lr %.2e  grad norm %s  %.1f images/s (%.1f per device)  "
            "ETA %s  memory %.1f GiB%s",
            step,
            self.total_steps,
            epoch,
            row["loss"],
            lr,
            norm,
            row["images_per_s"],
            row["images_per_s_per_device"],
            duration((self.total_steps - step) * self._seconds_per_step),
            row["memory_gib"],
            f"  skipped {interval.skipped}" if interval.skipped else "",
        )

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        if self._board is not None:
            self._board.scalars(values, step)

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 2**30
        return float(psutil.Process().memory_info().rss) / 2**30


def _tag(key: str) -> str:
    """Classes' IoU has a section of its own."""
    return f"iou/{key.removeprefix('iou_')}" if key.startswith("iou_") else f"validation/{key}"
