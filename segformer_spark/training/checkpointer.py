"""When a run's state is saved, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from segformer_spark.checkpoint.store import CheckpointStore, refuse_not_finite
from segformer_spark.config.schema import OutputConfig
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import CheckpointError, TrainingDiverged
from segformer_spark.training.best import BestTracker
from segformer_spark.training.progress import Progress, to_stored


class Checkpointer:
    """Saves the engine's state and the run's counters.

    Attributes:
        output: how often checkpoints are saved.
        configuration: what a checkpoint remembers of the configuration.
        saved_step: step of the last checkpoint of this process; `seconds`: how long it took.
        clock: seconds, for `output.checkpoint_every_minutes`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        output: OutputConfig,
        configuration: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.engine, self.output, self.configuration = store, engine, output, configuration
        self.clock, self._saved_at = clock, clock()
        self.saved_step: int | None = None
        self.seconds = 0.0

    def is_due(self, progress: Progress) -> bool:
        """At the end of an epoch, and every so many steps. Equal on all ranks."""
        if progress.position.step == 0 and progress.position.epoch % self.output.checkpoint_every_epochs == 0:
            return True
        every = self.output.checkpoint_every_steps
        return every is not None and progress.step % every == 0

    @property
    def is_late(self) -> bool:
        """Whether the last checkpoint is older than `output.checkpoint_every_minutes`, by this rank's clock."""
        minutes = self.output.checkpoint_every_minutes
        return minutes is not None and self.clock() - self._saved_at >= 60 * minutes

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
            self.store.save(progress.step, stored, best.step)

        self.engine.group.on_main(save)
        self.saved_step, self._saved_at = progress.step, self.clock()
        self.seconds = time.monotonic() - started
        return self.seconds
