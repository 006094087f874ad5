"""A finished run that is to go on: training.epochs, or max_steps, were raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segformer_spark.config.schema import Config
from segformer_spark.config.stored import stored_fields
from segformer_spark.training.plan import plan_steps
from segformer_spark.training.schedule import Schedule

LENGTH = ("training.epochs", "training.max_steps")


@dataclass(frozen=True)
class Extension:
    """From how many steps to how many, and the learning rate before and after."""

    from_steps: int
    to_steps: int
    lr_before: float
    lr_after: float

    def describe(self) -> str:
        """For the log."""
        return (
            f"the finished run is extended from {self.from_steps} to {self.to_steps} steps. The schedule is that of "
            f"the new length: the learning rate, {self.lr_before:.3g} at step {self.from_steps}, goes on at "
            f"{self.lr_after:.3g}"
        )


def find_extension(
    state: Mapping[str, Any], config: Config, steps_per_epoch: int, schedule: Schedule
) -> Extension | None:
    """What a checkpoint's run is extended by; None where it is not at its end, or is not to become longer.

    Args:
        state: state.json of the checkpoint.
        schedule: of the present configuration.
    """
    before = stored_fields(state["config"])
    epochs, limit = (before[name] for name in LENGTH)
    old_total = epochs * steps_per_epoch if limit is None else min(epochs * steps_per_epoch, limit)
    new_total, done = plan_steps(config, steps_per_epoch), int(state["progress"]["step"])
    if done < old_total or new_total <= old_total:
        return None
    length = {"epochs": epochs, "max_steps": limit}
    old = config.model_copy(update={"training": config.training.model_copy(update=length)})
    shorter = _of_length(schedule, plan_steps(old, steps_per_epoch))
    reductions = int(state["progress"].get("plateau", {}).get("reductions", 0))
    return Extension(old_total, new_total, shorter.lr(done - 1, reductions), schedule.lr(done, reductions))


def _of_length(schedule: Schedule, total_steps: int) -> Schedule:
    return Schedule(schedule.config, schedule.peak, schedule.warmup_steps, total_steps, schedule.restart_steps)
