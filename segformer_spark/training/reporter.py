"""What rank 0 tells the user while training: counts the steps and passes reports to the sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from segformer_spark.engine.launched import StepResult
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_error
from segformer_spark.training.sinks import PicturesReport, Sink, ValidationReport
from segformer_spark.training.throughput import IntervalReport, Throughput


class Reporter:
    """Reports to every sink; other ranks than 0 have none.

    A write that fails (full disk) is held in `failure`: rank 0 must not leave the others waiting in a collective, so
    the loop raises it where all ranks meet.

    Args:
        every: steps between interval reports.
        folder: named in the error of a write that fails.
    """

    failure: UserError | None = None

    def __init__(self, sinks: Sequence[Sink], throughput: Throughput, *, every: int, folder: Path) -> None:
        self.sinks, self.throughput, self.every, self.folder = sinks, throughput, every, folder
        self._unreported: Callable[[], IntervalReport] | None = None

    def start(self, step: int, *, validated: bool) -> None:
        """Begin, or continue from `step`, forgetting what was reported after it.

        Raises:
            UserError: a sink cannot write.
        """
        for sink in self.sinks:
            sink.start(step, validated=validated)
        self.throughput.start()

    def step(self, step: int, epoch: int, lr: float, lrs: Mapping[str, float], result: StepResult) -> None:
        """Count one optimizer step; every N-th, the last, and those before a validation are reported.

        Args:
            lr: before the groups' multipliers; `lrs` after them, by group.
        """
        self.throughput.count(result)
        self._tell(lambda sink: sink.step(step, result))
        self._unreported = partial(self.throughput.finish_interval, step, epoch, lr, lrs)
        if step % self.every == 0 or step == self.throughput.total_steps:
            self.end_interval()

    def end_interval(self) -> None:
        """Report the steps that are not reported yet, so that what follows a validation does not mix with them."""
        if self._unreported is not None:
            report = self._unreported()
            self._unreported = None
            self._tell(lambda sink: sink.interval(report))

    def flush(self) -> None:
        """Write what was held back: whoever resumes from the checkpoint that comes goes on behind it."""
        self._tell(lambda sink: sink.flush())

    def validation(self, report: ValidationReport) -> None:
        """Report a validation."""
        self._tell(lambda sink: sink.validation(report))

    def pictures(self, report: PicturesReport) -> None:
        """Show the fixed images' predictions and the confusion matrix."""
        self._tell(lambda sink: sink.pictures(report))

    def hparams(self, values: Mapping[str, Any], metric: str, best: float, step: int) -> None:
        """Put the settings beside the best score."""
        self._tell(lambda sink: sink.hparams(values, metric, best, step))

    def exclude(self, seconds: float) -> None:
        """Leave time spent on validation or saving out of the throughput."""
        self.throughput.exclude(seconds)

    def close(self) -> None:
        """Flush everything."""
        for sink in self.sinks:
            sink.close()

    def _tell(self, report: Callable[[Sink], None]) -> None:
        """Report to every sink; one that fails does not stop the others."""
        for sink in self.sinks:
            try:
                report(sink)
            except UserError as error:
                self.failure = self.failure or error
            except OSError as error:  # TensorBoard's own
                self.failure = self.failure or write_error(self.folder, error)
