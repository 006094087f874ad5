"""Dropout by 16 random bits for each value."""

from __future__ import annotations

LEVELS = 2**16


def dropped_levels(rate: float) -> int:
    """How many of the 65536 levels are left out for a probability; never all."""
    return min(round(rate * LEVELS), LEVELS - 1)


def keep_scale(dropped: int) -> float:
    """The factor of what is kept, so that the mean stays."""
    return LEVELS / (LEVELS - dropped)
