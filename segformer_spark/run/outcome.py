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


FINISHED = (Outcome.COMPLETED, Outcome.EARLY_STOPPED)
"""Nothing is left to train."""
