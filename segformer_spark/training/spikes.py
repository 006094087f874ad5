"""Says when the loss of a step is far above those before it: a damaged label, a batch of one class, a rate too high."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path

from segformer_spark.engine.launched import StepResult
from segformer_spark.run.console import logger
from segformer_spark.training.sinks import Sink

_WINDOW, _LEAST = 100, 30
_DEVIATIONS, _RATIO = 10.0, 2.0


class SpikeSink(Sink):
    """Compares every loss with the hundred before it: above their median by ten times the median deviation from it, and
    twice the median. After one it is silent for as many steps."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._silent_until = 0

    def step(self, step: int, result: StepResult) -> None:
        if len(self._recent) >= _LEAST and step > self._silent_until:
            usual = statistics.median(self._recent)
            deviation = statistics.median(abs(loss - usual) for loss in self._recent)
            if result.loss > max(_RATIO * usual, usual + _DEVIATIONS * deviation):
                self._silent_until = step + _WINDOW
                logger.warning(
                    "the loss of step %d is %.4f, usual are %.4f: look at it with segformer-spark replay %s --step %d",
                    *(step, result.loss, usual, self.run, step),
                )
        self._recent.append(result.loss)
