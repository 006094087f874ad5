"""How sure differences between models are: intervals over seeds, and paired tests over images.

Two models predict the same images, so their difference is tested image by image (Wilcoxon 1945, signed ranks; bootstrap
of the mean difference, Efron 1979); with several pairs the p values are adjusted (Holm 1979). Images of one drive or
video are not independent, and the test does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from segformer_spark.metrics.resampling import holm

MIN_IMAGES = 6
"""Below, no outcome of the signed-rank test is significant at 5 %."""

_REPEATS = 5000


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95 % t interval; the interval is None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Paired:
    """How much higher `first` scores than `second` on the same images.

    Attributes:
        difference: mean over the images.
        low, high: its 95 % bootstrap interval; None with fewer than MIN_IMAGES images.
        p: of the signed-rank test; None with fewer images, or without any difference.
        p_adjusted: after Holm's adjustment over all pairs.
        better: share of the images on which `first` is higher.
    """

    first: str
    second: str
    num_images: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    better: float


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % t interval (n - 1 degrees of freedom)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, len(values))
    scale = float(stats.sem(values))
    if scale == 0:
        return Interval(mean, mean, mean, len(values))  # scipy has no interval without spread
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=scale)
    return Interval(mean, float(low), float(high), len(values))


def paired_differences(scores: Mapping[str, Mapping[str, float]], seed: int = 0) -> list[Paired]:
    """All pairs of models, on the images that both have.

    Args:
        scores: {model: {image: score}}.
    """
    names = list(scores)
    pairs = [
        _paired(first, second, scores[first], scores[second], seed)
        for position, first in enumerate(names)
        for second in names[position + 1 :]
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [Paired(**{**pair.__dict__, "p_adjusted": p}) for pair, p in zip(pairs, adjusted, strict=True)]


def _paired(first: str, second: str, one: Mapping[str, float], other: Mapping[str, float], seed: int) -> Paired:
    images = [image for image in one if image in other]
    difference = np.array([one[image] - other[image] for image in images], np.float64)
    low = high = p = None
    if len(images) >= MIN_IMAGES and bool((difference != 0).any()):
        p = float(stats.wilcoxon(difference).pvalue)
        rng = np.random.default_rng(seed)
        found = stats.bootstrap((difference,), np.mean, n_resamples=_REPEATS, method="percentile", rng=rng)
        low, high = (float(bound) for bound in found.confidence_interval)
    mean, better = (float(difference.mean()), float((difference > 0).mean())) if len(images) else (0.0, 0.0)
    return Paired(first, second, len(images), mean, low, high, p, None, better)


def pareto_front(points: Sequence[tuple[float, float]], *, higher_cost_is_better: bool = False) -> list[int]:
    """Indices of the points that no other point beats in both, by ascending cost.

    Args:
        points: (cost, score); a higher score is better, and a lower cost unless told otherwise.
    """
    sign = -1.0 if higher_cost_is_better else 1.0
    order = sorted(range(len(points)), key=lambda position: (sign * points[position][0], -points[position][1]))
    front: list[int] = []
    best = -np.inf
    for position in order:
        if points[position][1] > best:
            front.append(position)
            best = points[position][1]
    return sorted(front, key=lambda position: points[position][0])
