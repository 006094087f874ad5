"""The order of training: steps, validations, checkpoints, and when to end. Every decision is taken by all ranks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from segformer_spark.checkpoint.store import CheckpointStore
from segformer_spark.config.schema import TrainingConfig
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine, StepResult
from segformer_spark.errors import TrainingDiverged, UserError
from segformer_spark.metrics.report import scalar_metrics, selection_value
from segformer_spark.run.console import logger, progress
from segformer_spark.run.lease import Lease
from segformer_spark.training.progress import Progress, to_stored
from segformer_spark.training.reporter import Reporter
from segformer_spark.training.schedule import Schedule
from segformer_spark.training.stop import BestTracker, StopRequest

_RESERVE_SECONDS = 30.0


class Outcome(Enum):
    """How a loop ended."""

    COMPLETED = "completed"
    EARLY_STOPPED = "stopped early"
    STOPPED = "stopped on request"


@dataclass
class Loop:
    """Trains from `progress` to the end.

    Attributes:
        evaluate: returns the validation metrics; collective.
        draw: shows a validation in pictures; called on all ranks.
        save_best: exports the best model; called on all ranks.
        checkpoint_every: optimizer steps between checkpoints; None for the end of each epoch.
        lease: rank 0's hold on the run directory.
        configuration: what a checkpoint remembers of the configuration.
    """

    engine: Engine
    loader: TrainLoader
    schedule: Schedule
    store: CheckpointStore
    reporter: Reporter
    group: Group
    config: TrainingConfig
    evaluate: Callable[[], dict[str, Any]]
    draw: Callable[[dict[str, Any]], None]
    save_best: Callable[[dict[str, float]], None]
    configuration: dict[str, Any]
    checkpoint_every: int | None
    progress: Progress
    best: BestTracker
    stop: StopRequest
    lease: Lease | None
    skipped_in_a_row: int = 0
    saved_step: int | None = None
    save_seconds: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.sampler.steps_per_epoch

    def run(self) -> Outcome:
        """Train; a checkpoint of the last step stands on disk when this returns.

        A checkpoint is saved before the validation at the same step, which may take longer than a job's grace time;
        a run that is cut off in between validates when it is resumed.
        """
        if (self.progress.step == 0 and self.config.validation.at_start) or self._validation_is_due():
            self._validate()
        while self.progress.step < self.schedule.total_steps and not self.best.exhausted:
            if self._run_epoch():
                self._save_checkpoint()
                logger.info("checkpoint of step %d saved in %.1f s", self.progress.step, self.save_seconds)
                return Outcome.STOPPED
        finished = self.progress.step >= self.schedule.total_steps
        self._save_checkpoint()
        if finished and self.progress.validated_step != self.progress.step:
            self._validate()
        self.group.raise_common(self.reporter.failure)
        return Outcome.COMPLETED if finished else Outcome.EARLY_STOPPED

    def _run_epoch(self) -> bool:
        """Train to the end of the epoch or of the run; True if a stop was requested."""
        position = self.progress.position
        epoch, first_step = position.epoch, position.step
        self.loader.sampler.start_at(position)
        left = min(self.steps_per_epoch - first_step, self.schedule.total_steps - self.progress.step)
        steps = itertools.islice(_grouped(iter(self.loader), self.engine.plan.accumulation_steps), left)
        started = time.monotonic() - self.progress.unfinished_seconds
        bar = progress(
            steps,
            total=self.steps_per_epoch,
            initial=first_step,
            label=f"epoch {epoch + 1}",
            visible=self.group.is_main,
        )
        batches = iter(bar)
        for _ in range(left):
            step_batches = self._agree_on_next(batches)
            if step_batches is None:
                reason = self.stop.reason or "another rank"
                logger.info("stop requested (%s): saving a checkpoint, then leaving", reason)
                return True
            self._train_step(step_batches, epoch)
            self.progress.unfinished_seconds = time.monotonic() - started
            if self.progress.position.epoch > epoch:
                self.progress.epoch_seconds.append(round(self.progress.unfinished_seconds, 2))
                self.progress.unfinished_seconds = 0.0
            if self._checkpoint_is_due():
                self._save_checkpoint()
            if self._validation_is_due():
                self._validate()
            if self.best.exhausted:
                logger.info(
                    "no better %s for %d validations: stopping early",
                    self.config.selection_metric,
                    self.best.since_best,
                )
                break
        return False

    def _agree_on_next(self, batches: Iterator[list[TrainBatch]]) -> list[TrainBatch] | None:
        """The next step's batches; None when a rank was asked to stop.

        An error that one rank met (a damaged image, a full disk) is raised on all of them, here, before any waits for
        another in a collective.
        """
        self.stop.look_at_the_clock(_RESERVE_SECONDS + 3 * self.save_seconds)
        found: list[TrainBatch] = []
        failure: UserError | None = self.reporter.failure
        try:
            if self.lease is not None and self.lease.lost:
                self.lease.check()
            found = next(batches)
        except UserError as error:
            failure = error
        status = self.group.max_over_ranks(2 if failure is not None else int(self.stop.reason is not None))
        if status == 2:
            self.group.raise_common(failure)
        return None if status else found

    def _train_step(self, batches: list[TrainBatch], epoch: int) -> None:
        lr = self.schedule.lr(self.progress.step)
        self.engine.set_lr(lr)
        result = self.engine.train_step(batches, self.progress.step)
        self.progress.advance(self.steps_per_epoch)
        self._count_skipped(result)
        self.reporter.step(self.progress.step, epoch + 1, lr, self.engine.lrs(), result)

    def _count_skipped(self, result: StepResult) -> None:
        self.skipped_in_a_row = 0 if result.applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise TrainingDiverged(
                f"{self.skipped_in_a_row} updates in a row were skipped for overflow, up to step {self.progress.step}; "
                "use bf16 or fp32, or a lower learning rate"
            )

    def _validation_is_due(self) -> bool:
        if self.progress.step == 0 or self.progress.validated_step == self.progress.step:
            return False
        settings = self.config.validation
        if settings.every_steps is not None and self.progress.step % settings.every_steps == 0:
            return True
        position = self.progress.position
        return settings.every_epochs is not None and position.step == 0 and position.epoch % settings.every_epochs == 0

    def _checkpoint_is_due(self) -> bool:
        if self.progress.position.step == 0:
            return True
        return self.checkpoint_every is not None and self.progress.step % self.checkpoint_every == 0

    def _validate(self) -> None:
        started = time.monotonic()
        metrics = self.evaluate()
        scalars = scalar_metrics(metrics)
        step, position = self.progress.step, self.progress.position
        self.progress.validated_step = step
        is_best = False
        if step > 0:
            is_best = self.best.update(selection_value(metrics, self.config.selection_metric), step)
        if is_best:
            self.save_best(scalars)
        seconds = time.monotonic() - started
        epoch = position.epoch if position.step == 0 else position.epoch + 1
        self.reporter.validation(step, epoch, scalars, seconds, best=is_best, metric=self.config.selection_metric)
        self.draw(metrics)
        self.reporter.exclude(time.monotonic() - started)

    def _save_checkpoint(self) -> None:
        if self.saved_step == self.progress.step:
            return
        started = time.monotonic()
        stored = to_stored(self.engine.export_state(), self.progress, self.best, self.configuration)
        self.group.on_main(lambda: self.store.save(self.progress.step, stored))
        self.saved_step = self.progress.step
        self.save_seconds = time.monotonic() - started
        self.reporter.exclude(self.save_seconds)


def _grouped(batches: Iterator[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
    while group := list(itertools.islice(batches, size)):
        yield group
