"""A training of a few steps, as a function for test ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from segformer_spark.config.load import load_config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.launched import StepResult
from segformer_spark.run.console import setup_logging
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.train import TrainOptions, run_training
from tests.ranks import Group
from tests.tiny import TINY_SETTINGS

GLOBAL_BATCH = 4

SHORT = (
    "data.image_size=64",
    "data.num_workers=0",
    *TINY_SETTINGS,
    "training.epochs=3",
    f"training.global_batch_size={GLOBAL_BATCH}",
    "training.optimizer.lr=1e-3",
    "training.scheduler.warmup_epochs=0.5",
    "output.log_every_steps=1",
    "output.tensorboard=false",
    "hardware.threads=1",
)


@dataclass
class StopAtStep(StopRequest):
    """Asks to stop once `step` optimizer steps of this process are done."""

    step: int = 10**9
    losses: list[float] = field(default_factory=list)

    def count(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        if len(self.losses) == self.step:
            self.reason = "test"


def short_run(
    group: Group,
    root: str,
    path: str,
    overrides: tuple[str, ...] = (),
    resume: str | None = None,
    stop_at: int = 10**9,
    deadline: float | None = None,
) -> list[float]:
    """Train; returns the loss of every optimizer step. The micro-batch follows from the number of ranks."""
    setup_logging(group.rank, group.world_size)
    settings = [*SHORT, f"training.batch_size={GLOBAL_BATCH // group.world_size}", f"data.root={root}"]
    resolved = load_config(overrides=[*settings, f"output.save_path={path}", *overrides])
    stop = StopAtStep(step=stop_at, deadline=deadline)
    original = Engine.launch_step

    def counted(self: Engine, batches: list[TrainBatch], step: int) -> Any:
        launched = original(self, batches, step)
        stop.count(launched.result())
        return launched

    patched: Any = Engine
    patched.launch_step = counted
    run_training(resolved, TrainOptions(resume=resume), group, stop)
    return stop.losses
