"""Agreement of a model's decisions with human ratings: correlations over thresholds, and their maximum under chance.

A model says "changed" when the relative change of area is above a threshold. 49 thresholds are tried and the best is
quoted, so its p is that of the maximum under permuted ratings (Westfall and Young 1993), not that of one test. The
Spearman correlation with a binary decision is the Pearson correlation with the ranks of the ratings.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(1, 50))
MIN_ITEMS = 3
MAX_EXACT = 8
"""Items whose orders are all tried: 40,320."""

KINDS = ("pearson", "spearman")

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """A coefficient with its two-sided p; both None where it is undefined: a constant side, or under MIN_ITEMS."""

    value: float | None
    p: float | None


@dataclass(frozen=True)
class Maximum:
    """The highest correlation over the thresholds.

    Attributes:
        threshold, value: where it is, and what; None where all are undefined.
        p: share of permutations of the ratings whose maximum is as high, of them and the one observed.
        low, high: 95 % interval of the maximum over resampled items.
    """

    threshold: float | None
    value: float | None
    p: float | None
    low: float | None
    high: float | None


def correlate(kind: str, one: Sequence[float], other: Sequence[float]) -> Correlation:
    """Pearson's r or Spearman's rho of two samples."""
    if len(one) < MIN_ITEMS or len(set(one)) < 2 or len(set(other)) < 2:
        return Correlation(None, None)
    result = stats.pearsonr(one, other) if kind == "pearson" else stats.spearmanr(one, other)
    return Correlation(float(result.statistic), float(result.pvalue))


def exact_p(kind: str, one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided p of Pearson's r or Spearman's rho: the share of all orders of `other` whose coefficient is as far from
    0; None where it is undefined, or with more than MAX_EXACT items."""
    if not MIN_ITEMS <= len(one) <= MAX_EXACT or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    orders = np.array(list(itertools.permutations(other)), np.float64)
    values = np.abs(_coefficients(kind, _ranked(kind, one)[None], orders)[0])
    return float((values >= values[0] - 1e-12).mean())


def _ranked(kind: str, values: Sequence[float]) -> Vector:
    """The values, or their ranks for Spearman's rho."""
    found = np.asarray(values, np.float64)
    return np.asarray(stats.rankdata(found)) if kind == "spearman" else found


def decisions(changes: Sequence[float]) -> NDArray[np.bool_]:
    """(thresholds, items): whether the change is above the threshold."""
    return np.asarray(changes, np.float64)[None] > np.asarray(THRESHOLDS)[:, None]


def maximum(
    kind: str, changes: Sequence[float], answers: Sequence[float], *, repeats: int = 10_000, seed: int = 0
) -> Maximum:
    """The maximum over the thresholds, with its permutation p and interval."""
    decided = decisions(changes).astype(np.float64)
    human = np.asarray(answers, np.float64)
    if len(human) < MIN_ITEMS:
        return Maximum(None, None, None, None, None)
    values = _coefficients(kind, decided, human[None])[:, 0]
    if np.isnan(values).all():
        return Maximum(None, None, None, None, None)
    best = int(np.nanargmax(values))
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.broadcast_to(human, (repeats, len(human))), axis=1)
    by_chance = np.nanmax(_coefficients(kind, decided, permuted), axis=0)
    # Equal maxima must count as equal whatever the order of their sums.
    p = (1 + int((by_chance >= values[best] - 1e-12).sum())) / (repeats + 1)
    low, high = _interval(kind, decided, human, rng, min(repeats, 2000))
    return Maximum(THRESHOLDS[best], float(values[best]), p, low, high)


def _interval(
    kind: str, decided: Vector, human: Vector, rng: np.random.Generator, repeats: int
) -> tuple[float | None, float | None]:
    def highest(items: NDArray[np.int64]) -> float:
        values = _coefficients(kind, decided[:, items], human[None, items])
        return math.nan if np.isnan(values).all() else float(np.nanmax(values))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap(
            (np.arange(len(human)),), highest, n_resamples=repeats, method="percentile", vectorized=False, rng=rng
        )
    # Resamples in which one side is constant have no maximum.
    defined = resampled.bootstrap_distribution[~np.isnan(resampled.bootstrap_distribution)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _coefficients(kind: str, decided: Vector, answers: Vector) -> Vector:
    """(thresholds, items) and (repeats, items) -> (thresholds, repeats); NaN where a side is constant."""
    if kind == "spearman":
        answers = stats.rankdata(answers, axis=1)
    result: Vector = _standardized(decided) @ _standardized(answers).T
    return result


def _standardized(values: Vector) -> Vector:
    centered = values - values.mean(1, keepdims=True)
    length = np.sqrt((centered**2).sum(1, keepdims=True))
    constant = np.ptp(values, axis=1, keepdims=True) == 0
    result: Vector = np.where(constant, np.nan, centered / np.where(constant, 1.0, length))
    return result
