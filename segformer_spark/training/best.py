"""The best validation of a run, and how many came since."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BestTracker:
    """The best score so far, and validations since.

    Attributes:
        patience: stop after this many validations without improvement; None never.
        min_delta: a rise must be larger than this to count.
    """

    patience: int | None
    min_delta: float
    score: float | None = None
    step: int | None = None
    since_best: int = 0

    def update(self, score: float, step: int) -> bool:
        """Record a validation; True if it is the best so far."""
        if self.score is None or score > self.score + self.min_delta:
            self.score, self.step, self.since_best = score, step, 0
            return True
        self.since_best += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.since_best >= self.patience
