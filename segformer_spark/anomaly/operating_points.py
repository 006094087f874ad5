"""Thresholds for use: chosen on some images, judged on others.

StreetHazards has anomalies in its test split alone, so a threshold for a recall or for the best F1 is fitted on half of
its towns and judged on the other half. One for a false-positive rate needs no anomaly, and may be fitted on another
split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.metrics.ranking import Ranking

Row = dict[str, Any]


@dataclass(frozen=True)
class Halves:
    """Two halves of a split, by the groups (towns) of its images.

    Attributes:
        fitted, judged: names of the groups.
        is_judged: for every image, which half it belongs to.
    """

    fitted: tuple[str, ...]
    judged: tuple[str, ...]
    is_judged: tuple[bool, ...]


@dataclass(frozen=True)
class OperatingPoints:
    """What thresholds are to reach, and where they are fitted and judged.

    Attributes:
        recall, fpr: this recall at least; this false-positive rate at most.
        elsewhere: name and scores of a split without anomalies that the false-positive rate is fitted on.
    """

    halves: Halves
    recall: float = 0.95
    fpr: float = 0.05
    elsewhere: tuple[str, Mapping[str, Ranking]] | None = None


def split_in_halves(dataset: SegmentationDataset, seed: int) -> Halves | None:
    """Groups in a random order, each to the half that has fewer images so far; None with fewer than two groups."""
    groups = np.array([dataset.category(index) for index in range(len(dataset))])
    present = np.unique(groups)
    if len(present) < 2:
        return None
    sizes, parts = [0, 0], ([], [])  # type: tuple[list[int], tuple[list[int], list[int]]]
    for group in np.random.default_rng(seed).permutation(present):
        half = int(sizes[1] < sizes[0])
        parts[half].append(int(group))
        sizes[half] += int((groups == group).sum())
    fitted, judged = (tuple(sorted(dataset.categories[group] for group in part)) for part in parts)
    return Halves(fitted, judged, tuple(bool(np.isin(group, parts[1])) for group in groups))


def threshold_for_recall(ranking: Ranking, recall: float) -> float:
    """The highest threshold with this recall."""
    return float(ranking.thresholds[int(np.argmax(ranking.recall >= recall))])


def threshold_for_fpr(ranking: Ranking, fpr: float) -> float:
    """The lowest threshold whose false-positive rate is not above `fpr`; infinite where every score is too low."""
    allowed = np.flatnonzero(ranking.false_positive_rate <= fpr)
    return float(ranking.thresholds[allowed[-1]]) if len(allowed) else math.inf


def judged_at(ranking: Ranking, threshold: float) -> dict[str, float | None]:
    """Precision, recall, F1 and false-positive rate of calling every score at or above the threshold an anomaly."""
    called = int((ranking.thresholds >= threshold).sum())
    true = int(ranking.true_positives[called - 1]) if called else 0
    false = int(ranking.false_positives[called - 1]) if called else 0
    return {
        "precision": true / (true + false) if true + false else None,
        "recall": true / ranking.positives if ranking.positives else None,
        "f1": 2 * true / (true + false + ranking.positives) if true + false + ranking.positives else None,
        "fpr": false / ranking.negatives if ranking.negatives else None,
    }


def operating_point_rows(
    fitted: Mapping[str, Ranking], judged: Mapping[str, Ranking], points: OperatingPoints
) -> Iterator[Row]:
    """operating_points.csv: a row per method and target."""
    halves, elsewhere = points.halves, points.elsewhere
    towns = ", ".join(halves.fitted)
    for method, own in fitted.items():
        source, negatives = (towns, own) if elsewhere is None else (elsewhere[0], elsewhere[1][method])
        targets = (
            (f"recall >= {points.recall:g}", towns, threshold_for_recall(own, points.recall)),
            (f"false-positive rate <= {points.fpr:g}", source, threshold_for_fpr(negatives, points.fpr)),
            ("best F1", towns, float(own.thresholds[own.best])),
        )
        for target, origin, threshold in targets:
            found = judged_at(judged[method], threshold)
            yield {
                "method": method,
                "target": target,
                "fitted_on": origin,
                "judged_on": ", ".join(halves.judged),
                "threshold": threshold if math.isfinite(threshold) else None,
                **{name: None if value is None else round(value, 6) for name, value in found.items()},
            }
