"""What the steps between two log lines add up to: mean loss and norm, images per second, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from segformer_spark.engine.launched import StepResult
from segformer_spark.training.progress import IntervalSums, Progress

_RECENT_SHARE = 0.3


@dataclass(frozen=True)
class IntervalReport:
    """The optimizer steps since the last log line.

    Attributes:
        step: the last of them, from 1 on; `epoch` from 1 on too; num_steps: how many.
        loss, grad_norm: means; the norm is None when no step had one.
        lr: before the groups' multipliers; `lrs` after them, by group.
        memory_gib: the GPU's highest allocation so far, on a CPU the process's resident memory.
        eta_seconds: until the last step of the run.
    """

    step: int
    epoch: int
    total_steps: int
    num_steps: int
    loss: float
    lr: float
    lrs: Mapping[str, float]
    grad_norm: float | None
    images_per_s: float
    images_per_s_per_device: float
    memory_gib: float
    skipped_steps: int
    eta_seconds: float


class Throughput:
    """Counts optimizer steps and the time that they take.

    Args:
        progress: its `interval`, which a checkpoint may have begun, is counted on.
    """

    def __init__(
        self, *, global_batch: int, world_size: int, total_steps: int, device: torch.device, progress: Progress
    ) -> None:
        self.global_batch, self.world_size, self.total_steps = global_batch, world_size, total_steps
        self.device, self.progress = device, progress
        self._seconds_per_step: float | None = None
        self.start()

    def start(self) -> None:
        """Begin to take the time. Steps that a checkpoint brought were timed by another process."""
        self._started, self._excluded, self._timed_steps = time.monotonic(), 0.0, 0

    def count(self, result: StepResult) -> None:
        """Take in one optimizer step."""
        self.progress.interval.add(result.loss, result.grad_norm, applied=result.applied)
        self._timed_steps += 1

    def exclude(self, seconds: float) -> None:
        """Leave time spent on validation or saving out."""
        self._excluded += seconds

    def finish_interval(self, step: int, epoch: int, lr: float, lrs: Mapping[str, float]) -> IntervalReport:
        """Report the steps since the interval began, at least one of them timed, and begin another."""
        interval, self.progress.interval = self.progress.interval, IntervalSums()
        seconds = max(time.monotonic() - self._started - self._excluded, 1e-9)
        recent = seconds / self._timed_steps
        self.start()
        # Smoothed, so that one slow interval does not swing the estimate.
        smoothed = recent if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = (1 - _RECENT_SHARE) * smoothed + _RECENT_SHARE * recent
        return IntervalReport(
            step=step,
            epoch=epoch,
            total_steps=self.total_steps,
            num_steps=interval.num_steps,
            loss=interval.loss / interval.num_steps,
            lr=lr,
            lrs=lrs,
            grad_norm=interval.grad_norm / interval.num_norms if interval.num_norms else None,
            images_per_s=self.global_batch / recent,
            images_per_s_per_device=self.global_batch / recent / self.world_size,
            memory_gib=self._memory_gib(),
            skipped_steps=interval.skipped,
            eta_seconds=(self.total_steps - step) * self._seconds_per_step,
        )

    def _memory_gib(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / 2**30
        return float(psutil.Process().memory_info().rss) / 2**30
