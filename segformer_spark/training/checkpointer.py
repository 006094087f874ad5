"""When a run's state is saved, and how long that takes."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

from segformer_spark.checkpoint.store import CheckpointStore, StoredState, refuse_not_finite
from segformer_spark.config.schema import OutputConfig
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.snapshot import Snapshot
from segformer_spark.errors import CheckpointError, RunTakenOver, TrainingDiverged, UserError
from segformer_spark.run.console import logger
from segformer_spark.training.best import BestTracker
from segformer_spark.training.progress import Progress, to_stored


class Checkpointer:
    """Saves the engine's state and the run's counters: a snapshot in memory, which a thread writes meanwhile.

    Attributes:
        output: how often checkpoints are saved.
        configuration: what a checkpoint remembers of the configuration.
        saved_step: step of the last checkpoint of this process.
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
        self._snapshot_seconds = self._write_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

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

    def save(self, progress: Progress, best: BestTracker, *, wait: bool = True) -> float:
        """Take a snapshot, unless this step has one, and begin to write it; returns the seconds spent. Collective.

        A snapshot that could not be written (a full disk) is named in the log; the checkpoint before it stands, and the
        next one is tried.

        Args:
            wait: return when the checkpoint stands on disk.

        Raises:
            TrainingDiverged: weights, moments or statistics of this step or, without `wait`, of the checkpoint before
                are not finite; the last one that was stands.
            UserError: the run was taken over; with `wait`, the checkpoint could not be written.
        """
        started = time.monotonic()
        if wait or self.saved_step != progress.step:
            self._finish(raises=False)
        if self.saved_step != progress.step:
            self._begin(progress, best)
            self._snapshot_seconds = time.monotonic() - started
        if wait or not self.output.save_in_background:
            self._finish(raises=wait)
        return time.monotonic() - started

    @property
    def seconds(self) -> float:
        """How long the last checkpoint took: the snapshot and, on the rank that writes, its writing."""
        return self._snapshot_seconds + self._write_seconds

    def close(self) -> None:
        """Wait for what is being written, on this rank; what went wrong is logged."""
        error = self._join()
        if error is not None:
            logger.warning("%s", error)

    def _begin(self, progress: Progress, best: BestTracker) -> None:
        snapshot = self.engine.snapshots.take()
        progress_then, best_then = copy.deepcopy(progress), copy.copy(best)

        def work() -> None:
            started = time.monotonic()
            try:
                self._write(snapshot, progress_then, best_then)
            except Exception as error:  # noqa: BLE001 - raised again by the thread that trains
                if not isinstance(error, UserError):
                    logger.warning("the checkpoint of step %d failed: %r", progress_then.step, error)
                self._error = error
            self._write_seconds = time.monotonic() - started

        # Sending, hashing and writing leave Python's lock to the training.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()
        self.saved_step, self._saved_at = progress.step, self.clock()

    def _write(self, snapshot: Snapshot, progress: Progress, best: BestTracker) -> None:
        """On all ranks: the first one puts together what they copied, and writes it."""
        snapshots = self.engine.snapshots
        state = snapshots.assemble(snapshot, self.engine.group.background)
        if state is None:
            return
        try:
            stored = to_stored(state, progress, best, self.configuration)
            _refuse_diverged(progress.step, stored)
            self.store.save(progress.step, stored, best.step)
        finally:
            snapshots.release(snapshot)

    def _join(self) -> Exception | None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        return error

    def _finish(self, *, raises: bool) -> None:
        """Wait for the checkpoint that is being written. Collective."""
        errors = [error for error in self.engine.group.gather(self._join()) if error is not None]
        if not errors:
            return
        error = errors[0]
        step, self.saved_step = self.saved_step, None
        is_passing = isinstance(error, UserError) and not isinstance(error, RunTakenOver | TrainingDiverged)
        if raises or not is_passing:
            raise error
        logger.warning("%s", error)
        logger.warning("the checkpoint of step %s could not be saved: training goes on, the one before it stands", step)


def _refuse_diverged(step: int, stored: StoredState) -> None:
    try:
        refuse_not_finite(stored, f"step {step}")
    except CheckpointError as error:
        raise TrainingDiverged(
            f"{error.problem}: it is not saved, and the checkpoint before it stands",
            "Go on from it with a lower learning rate, or with precision bf16 or fp32.",
        ) from error
