"""Learning rate at each optimizer step: a linear warm-up, then exactly what the name says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from segformer_spark.config.schema import SchedulerConfig
from segformer_spark.errors import ConfigError

_SHAPES: dict[str, Callable[[float, float], float]] = {
    "warmup_cosine": lambda t, power: 0.5 * (1 + math.cos(math.pi * t)),
    "warmup_poly": lambda t, power: (1 - t) ** power,
    "warmup_linear": lambda t, power: 1 - t,
    "constant": lambda t, power: 1.0,
}


@dataclass
class Plateau:
    """What `plateau` remembers: part of a run's state.

    Attributes:
        score: the best so far; `since_rise`: validations since then, or since the last reduction.
        reductions: how often the learning rate was lowered.
    """

    score: float | None = None
    since_rise: int = 0
    reductions: int = 0

    def update(self, score: float | None, patience: int) -> None:
        """Count a validation; an undefined score changes nothing."""
        if score is None:
            return
        if self.score is None or score > self.score:
            self.score, self.since_rise = score, 0
            return
        self.since_rise += 1
        if self.since_rise >= patience:
            self.since_rise, self.reductions = 0, self.reductions + 1


@dataclass(frozen=True)
class Schedule:
    """`peak` times a factor of the step; steps count from 0.

    Attributes:
        restart_steps: length of the first cosine of cosine_restarts.
    """

    config: SchedulerConfig
    peak: float
    warmup_steps: int
    total_steps: int
    restart_steps: float = math.inf

    def lr(self, step: int, reductions: int = 0) -> float:
        """Warm-up rises from peak / warmup_steps to peak; the decay falls from peak towards min_lr_ratio * peak.

        Args:
            reductions: of `Plateau`.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        lowest = self.config.min_lr_ratio
        if self.config.type == "plateau":
            return self.peak * max(lowest, self.config.plateau_factor**reductions)
        return self.peak * (lowest + (1 - lowest) * self._decay(step - self.warmup_steps))

    def _decay(self, step: int) -> float:
        """From 1 to 0 over the steps after the warm-up."""
        if self.config.type == "cosine_restarts":
            return _SHAPES["warmup_cosine"](_position_in_cycle(step, self.restart_steps, self.config.restart_factor), 1)
        progress = step / max(1, self.total_steps - self.warmup_steps)
        return _SHAPES[self.config.type](min(progress, 1.0), self.config.power)


def _position_in_cycle(step: float, length: float, factor: float) -> float:
    """The share of the present cycle that is over, in [0, 1); each is `factor` times as long as the one before."""
    while step >= length:
        step, length = step - length, length * factor
    return step / length


def build_schedule(
    config: SchedulerConfig, peak: float, steps_per_epoch: int, total_steps: int, epochs: int
) -> Schedule:
    """Resolve the lengths.

    Args:
        total_steps: of the run; `training.max_steps` may end it within the warm-up.
        epochs: as configured.

    Raises:
        ConfigError: the warm-up is not shorter than the configured epochs.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_epochs * steps_per_epoch)
    if warmup >= max(total_steps, epochs * steps_per_epoch):
        raise ConfigError(
            f"training.scheduler: the warm-up takes {warmup} steps, the whole training {epochs * steps_per_epoch}; "
            "shorten warmup_epochs or warmup_steps"
        )
    return Schedule(config, peak, warmup, total_steps, config.restart_epochs * steps_per_epoch)
