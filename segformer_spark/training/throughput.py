"""What the steps between two log lines add up to: mean loss and norm, images per second, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import torch

from segformer_spark.engine.engine import StepResult

_RECENT_SHARE = 0.3


@dataclass(frozen=True)
class IntervalReport:
    """The optimizer steps since the last log line.

    Attributes:
        step: the last of them, from 1 on; `epoch` from 1 on too.
        loss, grad_norm: means; the norm is None when no step had one.
        lr: before the groups' multipliers; `lrs` after them, by group.
        memory_gib: the GPU's highest allocation so far, on a CPU the process's resident memory.
        eta_seconds: until the last step of the run.
    """

    step: int
    epoch: int
    total_steps: int
    loss: float
    lr: float
    lrs: Mapping[str, float]
    grad_norm: float | None
    images_per_s: float
    images_per_s_per_device: float
    memory_gib: float
    skipped_steps: int
    eta_seconds: float


@dataclass
class _Interval:
    started: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    excluded: float = 0.0


class Throughput:
    """Counts optimizer steps and the time that they take."""

    def __init__(self, *, global_batch: int, world_size: int, total_steps: int, device: torch.device) -> None:
        self.global_batch, self.world_size, self.total_steps = global_batch, world_size, total_steps
        self.device = device
        self._interval = _Interval()
        self._seconds_per_step: float | None = None

    def start(self) -> None:
        """Begin an interval."""
        self._interval = _Interval()

    def count(self, result: StepResult) -> None:
        """Take in one optimizer step."""
        self._interval.losses.append(result.loss)
        if result.grad_norm is not None:
            self._interval.norms.append(result.grad_norm)
        self._interval.skipped += not result.applied

    def exclude(self, seconds: float) -> None:
        """Leave time spent on validation or saving out."""
        self._interval.excluded += seconds

    def finish_interval(self, step: int, epoch: int, lr: float, lrs: Mapping[str, float]) -> IntervalReport:
        """Report the steps since the interval began, and begin another."""
        interval, self._interval = self._interval, _Interval()
        num_steps = len(interval.losses)
        seconds = max(time.monotonic() - interval.started - interval.excluded, 1e-9)
        recent = seconds / num_steps
        # Smoothed, so that one slow interval does not swing the estimate.
        smoothed = recent if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = (1 - _RECENT_SHARE) * smoothed + _RECENT_SHARE * recent
        return IntervalReport(
            step=step,
            epoch=epoch,
            total_steps=self.total_steps,
            loss=sum(interval.losses) / num_steps,
            lr=lr,
            lrs=lrs,
            grad_norm=sum(interval.norms) / len(interval.norms) if interval.norms else None,
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
