"""The order of training: steps, validations, checkpoints, and when to end. Every decision is taken by all ranks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from segformer_spark.config.schema import TrainingConfig
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.data.workers import LoadingInterrupted
from segformer_spark.distributed.hang_watch import HangWatch
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.launched import StepResult
from segformer_spark.engine.replicas import compare_replicas
from segformer_spark.errors import TrainingDiverged, UserError
from segformer_spark.run.console import logger, progress
from segformer_spark.run.lease import Lease
from segformer_spark.run.outcome import Outcome
from segformer_spark.training.checkpointer import Checkpointer
from segformer_spark.training.consensus import Consensus
from segformer_spark.training.progress import Progress
from segformer_spark.training.reporter import Reporter
from segformer_spark.training.schedule import Schedule
from segformer_spark.training.slow_ranks import OwnTimes
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.validation import Validation

_RESERVE_SECONDS = 30.0


@dataclass
class Loop:
    """Trains from `progress` to the end.

    Attributes:
        lease: rank 0's right to write into the run directory.
        compare_every: steps between comparisons of the ranks' weights; None for never.
        hang_watch, own_times: are told how long steps, and the images of each, take.
        after_first_step: called once, when this process has done a step.
    """

    engine: Engine
    loader: TrainLoader
    schedule: Schedule
    validation: Validation
    checkpointer: Checkpointer
    reporter: Reporter
    config: TrainingConfig
    progress: Progress
    stop: StopRequest
    lease: Lease | None = None
    compare_every: int | None = None
    hang_watch: HangWatch | None = None
    own_times: OwnTimes | None = None
    after_first_step: Callable[[], None] = lambda: None
    skipped_in_a_row: int = 0
    _unread: Callable[[], None] | None = None
    _is_rehearsed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.sampler.steps_per_epoch

    def run(self) -> Outcome:
        """Train; a checkpoint of the last step stands on disk when this returns.

        A checkpoint is saved before the validation at the same step, which may take longer than a job's grace time;
        a run that is cut off in between validates when it is resumed.
        """
        at_start = self.progress.step == 0 and self.config.validation.at_start and self.progress.validated_step is None
        if at_start or self.validation.is_due(self.progress):
            self.validation.run(self.progress)
        while self.progress.step < self.schedule.total_steps and not self.validation.best.exhausted:
            stopped = self._run_epoch()
            self._read()
            if stopped:
                self._save_checkpoint(wait=True)
                logger.info("checkpoint of step %d saved in %.1f s", self.progress.step, self.checkpointer.seconds)
                return Outcome.STOPPED
        finished = self.progress.step >= self.schedule.total_steps
        self._save_checkpoint(wait=True)
        if finished and self.progress.validated_step != self.progress.step:
            self.validation.run(self.progress)
        self.engine.group.raise_common(self.reporter.failure)
        return Outcome.COMPLETED if finished else Outcome.EARLY_STOPPED

    def _run_epoch(self) -> bool:
        """Train to the end of the epoch or of the run; True if a stop was requested."""
        position = self.progress.position
        epoch, first_step = position.epoch, position.step
        self.loader.sampler.start_at(position)
        left = min(self.steps_per_epoch - first_step, self.schedule.total_steps - self.progress.step)
        steps = itertools.islice(_grouped(self.loader, self.engine.plan.accumulation_steps), left)
        started = time.monotonic() - self.progress.unfinished_seconds
        bar = progress(
            steps,
            total=self.steps_per_epoch,
            initial=first_step,
            label=f"epoch {epoch + 1}",
            visible=self.engine.group.is_main,
        )
        batches = iter(bar)
        step_began = time.monotonic()
        consensus = self._agree(batches)
        for last in (number == left - 1 for number in range(left)):
            self.engine.group.activity.begin(
                f"waiting for the other ranks before {self._next}", is_limited=True, waits=True
            )
            step_batches, is_late = consensus.result(), consensus.saves
            if step_batches is None:
                logger.info("stop requested (%s): saving a checkpoint, then leaving", self.stop.whole_reason)
                return True
            if self.looks_ahead and not last:
                consensus = self._agree(batches)
            self._train_step(step_batches, epoch)
            self._count_step(time.monotonic() - step_began)
            self.progress.unfinished_seconds = time.monotonic() - started
            if self.progress.position.epoch > epoch:
                self.progress.epoch_seconds.append(round(self.progress.unfinished_seconds, 2))
                self.progress.unfinished_seconds = 0.0
            validates = self.validation.is_due(self.progress)
            saves = is_late or self.checkpointer.is_due(self.progress)
            every = self.compare_every
            compares = not saves and every is not None and self.progress.step % every == 0
            if validates or saves or compares:
                consensus.wait()
                self._read()
            if compares:
                self._compare_replicas()
            if validates:
                self.reporter.end_interval()
            if saves:
                self._save_checkpoint()
            if validates:
                self.validation.run(self.progress)
            best = self.validation.best
            if best.exhausted:
                logger.info("no rise of %s for %d validations: stopping early", best.metric, best.since_rise)
                break
            step_began = time.monotonic()
            if not self.looks_ahead and not last:
                consensus = self._agree(batches)
        return False

    @property
    def looks_ahead(self) -> bool:
        """Whether the ranks agree on a step while the one before is launched: on GPUs, whose work goes on meanwhile.

        A CPU has nothing to do beside the consensus, and stops a step earlier without.
        """
        return self.engine.group.device.type == "cuda"

    def _agree(self, batches: Iterator[list[TrainBatch]]) -> Consensus:
        """Fetch the next step's batches, and begin to agree on them."""
        self.stop.look_at_the_clock(_RESERVE_SECONDS + 3 * self.checkpointer.seconds)
        self.engine.group.activity.begin(f"loading the images of {self._next}", is_limited=True)
        began = time.monotonic()
        found: list[TrainBatch] = []
        failure: UserError | None = self.reporter.failure
        try:
            if self.lease is not None and self.lease.lost:
                self.lease.check()
            found = next(batches)
        except LoadingInterrupted:
            logger.info("the next batch did not come before the request to stop")
        except UserError as error:
            failure = error
        if self.own_times is not None:
            self.own_times.loaded(time.monotonic() - began)
        stops, saves = self.stop.reason is not None, self.checkpointer.is_late
        return Consensus(self.engine.group, found, failure, stops=stops, saves=saves)

    def _train_step(self, batches: Sequence[TrainBatch], epoch: int) -> None:
        """Launch a step, then read the one before: the device has work while the host waits for numbers."""
        self.engine.group.activity.begin(self._next, is_limited=True)
        lr = self.schedule.lr(self.progress.step, self.progress.plateau.reductions)
        self.engine.set_lr(lr)
        launched = self.engine.launch_step(batches, self.progress.step)
        self._read()
        self.progress.advance(self.steps_per_epoch)
        step, lrs = self.progress.step, self.engine.lrs()

        def read() -> None:
            result = launched.result()
            self._count_skipped(result)
            self.reporter.step(step, epoch + 1, lr, lrs, result)

        self._unread = read
        if launched.is_finished:
            self._read()

    @property
    def _next(self) -> str:
        return f"step {self.progress.step + 1}"

    def _count_step(self, seconds: float) -> None:
        """A step was launched, and the one before it is done."""
        self.engine.group.activity.begin(f"after step {self.progress.step}")
        self.progress.step_seconds += seconds
        if self.hang_watch is not None:
            self.hang_watch.measured(seconds)
        if self.own_times is not None:
            self.own_times.compare(self.progress.step)
        if not self._is_rehearsed:
            self._is_rehearsed = True
            self._read()
            self.after_first_step()
            self.validation.rehearse()

    def _read(self) -> None:
        """Read the numbers of the last step, if that was not done.

        Raises:
            TrainingDiverged: they are not finite.
        """
        read, self._unread = self._unread, None
        if read is not None:
            read()

    def _count_skipped(self, result: StepResult) -> None:
        self.skipped_in_a_row = 0 if result.applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise TrainingDiverged(
                f"{self.skipped_in_a_row} updates in a row were skipped for overflow, up to step {self.progress.step}; "
                "use bf16 or fp32, or a lower learning rate"
            )

    def _compare_replicas(self) -> None:
        if self.compare_every is not None:
            compare_replicas(self.engine.model, self.engine.group, self.progress.step)

    def _save_checkpoint(self, *, wait: bool = False) -> None:
        """Save what all ranks agree on."""
        self.engine.group.activity.begin(f"saving the checkpoint of step {self.progress.step}")
        self._compare_replicas()
        self.reporter.flush()
        self.reporter.exclude(self.checkpointer.save(self.progress, self.validation.best, wait=wait))


def _grouped(loader: Iterable[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
    """Batches in groups; the loader begins with the first one, where its errors are told to all ranks."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group
