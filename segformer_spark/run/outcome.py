"""How a training ended, as records, attempts and batch scripts have it. Imports no torch."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """State of a run or of an attempt."""

    RUNNING = "running"
    COMPLETED = "completed"
    EARLY_STOPPED = "stopped early"
    STOPPED = "stopped on request"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self in (Outcome.COMPLETED, Outcome.EARLY_STOPPED)


FINISHED: tuple[str, ...] = tuple(outcome.value for outcome in Outcome if outcome.is_finished)
