"""When a run's state is saved, and how long that takes."""

from __future__ import annotations

import time
from typing import Any

from segformer_spark.checkpoint.store import CheckpointStore, refuse_not_finite
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import CheckpointError, TrainingDiverged
from segformer_spark.training.best import BestTracker
from segformer_spark.training.progress import Progress, to_stored


class Checkpointer:
    """Saves the engine's state and the run's counters.

    Attributes:
        every_steps: optimizer steps between checkpoints; None for the end of each epoch alone.
        configuration: what a checkpoint remembers of the configuration.
        saved_step: step of the last checkpoint of this process; `seconds`: how long it took.
    """

    def __init__(
        self, store: CheckpointStore, engine: Engine, every_steps: int | None, configuration: dict[str, Any]
    ) -> None:
        self.store, self.engine, self.every_steps, self.configuration = store, engine, every_steps, configuration
        self.saved_step: int | None = None
        self.seconds = 0.0

    def is_due(self, progress: Progress) -> bool:
        """At the end of an epoch, and every so many steps."""
        if progress.position.step == 0:
            return True
        return self.every_steps is not None and progress.step % self.every_steps == 0

    def save(self, progress: Progress, best: BestTracker) -> float:
        """Commit a checkpoint, unless this step has one; returns the seconds spent. Collective.

        Raises:
            TrainingDiverged: weights, moments or statistics are not finite; the last checkpoint that was stands.
        """
        if self.saved_step == progress.step:
            return 0.0
        started = time.monotonic()
        state = self.engine.export_state()

        def save() -> None:
            assert state is not None
            stored = to_stored(state, progress, best, self.configuration)
            try:
                refuse_not_finite(stored, f"step {progress.step}")
            except CheckpointError as error:
                raise TrainingDiverged(
                    f"{error.problem}: it is not saved, and the checkpoint before it stands",
                    "Go on from it with a lower learning rate, or with precision bf16 or fp32.",
                ) from error
            self.store.save(progress.step, stored)

        self.engine.group.on_main(save)
        self.saved_step = progress.step
        self.seconds = time.monotonic() - started
        return self.seconds
