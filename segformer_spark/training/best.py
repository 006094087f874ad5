"""The best validation of a run, and how many came since."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BestTracker:
    """The highest score so far, and whether patience has run out. Two rules: any rise makes a new best model, while
    patience waits for rises above `min_delta`.

    Attributes:
        patience: stop after this many validations without such a rise; None never.
        min_delta: a rise must be larger than this for patience to begin anew.
        metric: what is scored.
        score, step: the highest score, and when.
        patience_score: the score that the next rise is measured from; `since_rise`: validations since it was reached.
    """

    patience: int | None
    min_delta: float
    metric: str = ""
    score: float | None = None
    step: int | None = None
    patience_score: float | None = None
    since_rise: int = 0

    def update(self, score: float | None, step: int) -> bool:
        """Record a validation; True if it is the best so far. An undefined score (None) changes nothing."""
        if score is None:
            return False
        if self.patience_score is None or score > self.patience_score + self.min_delta:
            self.patience_score, self.since_rise = score, 0
        else:
            self.since_rise += 1
        if self.score is not None and score <= self.score:
            return False
        self.score, self.step = score, step
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.since_rise >= self.patience
