"""How sure a metric is: bootstrap over images or groups of images (Efron 1979), and Holm's adjustment.

A replicate draws as many groups as there are, with replacement, and counts each image as often as its group was drawn.
Images of one drive or video resemble each other: they are drawn together, as a group (cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Callable[[Floats], Floats]
"""Weights (R, N) of N images in R replicates -> values (R,); nan where undefined."""

REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a bootstrap; None where too few replicates are defined, or there is one group."""

    low: float | None
    high: float | None


def image_weights(groups: Sequence[Any], replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """How often each image counts in each replicate, (R, N).

    Args:
        groups: of each image, what it is drawn with.
    """
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    number = int(membership.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    drawn = (
        rng.multinomial(number, np.full(number, 1 / max(number, 1)), size=replicates) if number else np.zeros((0, 0))
    )
    return np.asarray(drawn[:, membership], np.float64)


def interval(values: Floats, level: float = LEVEL) -> Interval:
    """The percentile interval of replicates (R,)."""
    defined = values[~np.isnan(values)]
    if len(defined) < 0.5 * len(values) or len(defined) < 20:
        return Interval(None, None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def p_value(differences: Floats) -> float | None:
    """Two-sided: how often replicates (R,) of a difference lie on the other side of zero, doubled; at least 1 / R."""
    defined = differences[~np.isnan(differences)]
    if len(defined) < 20:
        return None
    lower, higher = int((defined <= 0).sum()), int((defined >= 0).sum())
    return min(1.0, 2 * (min(lower, higher) + 1) / (len(defined) + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979); undefined values stay undefined and do not count."""
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, position) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[position] = highest
    return adjusted


def holm_levels(p_values: Sequence[float | None], level: float = LEVEL) -> list[float]:
    """The level of each row's interval that goes with `holm`: 1 - alpha / (m - rank), the smallest p first."""
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    levels = [level] * len(p_values)
    for rank, (_, position) in enumerate(known):
        levels[position] = 1 - (1 - level) / (len(known) - rank)
    return levels
