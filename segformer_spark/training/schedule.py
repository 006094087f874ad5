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


@dataclass(frozen=True)
class Schedule:
    """`peak` times a factor of the step; steps count from 0."""

    peak: float
    shape: str
    warmup_steps: int
    total_steps: int
    min_ratio: float
    power: float

    def lr(self, step: int) -> float:
        """Warm-up rises from peak / warmup_steps to peak; the decay falls from peak towards min_ratio * peak."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        factor = _SHAPES[self.shape](min(progress, 1.0), self.power)
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * factor)


def build_schedule(config: SchedulerConfig, peak: float, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Resolve the warm-up's length.

    Raises:
        ConfigError: the warm-up is not shorter than the training.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise ConfigError(
            f"training.scheduler: the warm-up takes {warmup} steps, the whole training {total_steps}; "
            "shorten warmup_epochs or warmup_steps"
        )
    return Schedule(peak, config.type, warmup, total_steps, config.min_lr_ratio, config.power)
