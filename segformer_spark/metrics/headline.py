"""The figures that models are compared by, from counts per image, for any weights of the images.

With weights of 1 they are those of `metrics.scores` and `metrics.spark_score`; with those of a bootstrap, its
replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segformer_spark.metrics.confusion import OVERLAP, PREDICTED, TRUTH
from segformer_spark.metrics.names import is_spark
from segformer_spark.metrics.resampling import Floats
from segformer_spark.metrics.scores import quotient
from segformer_spark.metrics.spark_score import THRESHOLDS, Counts, counts_for_panels, image_iou


@dataclass(frozen=True)
class Headline:
    """Headline metrics of images whose counts are given.

    Attributes:
        per_image: int64 (N, C, 3): predicted, true and overlapping pixels.
        class_names: of the C classes.
    """

    per_image: Counts
    class_names: Sequence[str]
    _flat: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_flat", self.per_image.reshape(len(self.per_image), -1).astype(np.float64))

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics; the first is the one that counts."""
        return ("spark_score", "miou") if is_spark(self.class_names) else ("miou",)

    def values(self, weights: Floats | None = None) -> dict[str, Floats]:
        """{metric: values (R,)} for weights (R, N); None: one row of ones."""
        if weights is None:
            weights = np.ones((1, len(self.per_image)))
        found = {"miou": self.miou(weights)}
        return {"spark_score": self.spark(weights), **found} if is_spark(self.class_names) else found

    def value(self, name: str) -> float | None:
        """One metric over all images; None where it is undefined."""
        found = float(self.values()[name][0])
        return None if np.isnan(found) else found

    def class_iou(self, weights: Floats) -> Floats:
        """IoU (R, C) over the weighted pixels; nan for a class without any."""
        sums = (weights @ self._flat).reshape(len(weights), len(self.class_names), 3)
        union = sums[..., PREDICTED] + sums[..., TRUTH] - sums[..., OVERLAP]
        return quotient(sums[..., OVERLAP], union)

    def miou(self, weights: Floats) -> Floats:
        """Mean IoU (R,) of the classes that occur; nan with fewer than two."""
        iou = self.class_iou(weights)
        present = ~np.isnan(iou)
        number = present.sum(1)
        mean = np.where(present, iou, 0).sum(1) / np.maximum(number, 1)
        return np.asarray(np.where(number >= 2, mean, np.nan))

    def spark(self, weights: Floats) -> Floats:
        """The SPARK score (R,)."""
        body, panels = (self.per_image[:, self.class_names.index(name)] for name in ("body", "panels"))
        counted = counts_for_panels(body, panels)
        parts = [weighted_mean(_above(body), weights), weighted_mean(_above(panels), weights * counted)]
        stacked = np.stack(parts) / len(THRESHOLDS)
        present = ~np.isnan(stacked)
        total = np.where(present, stacked, 0).sum(0)
        return quotient(total, present.sum(0).astype(np.float64))


def _above(counts: Counts) -> Floats:
    """How many of the ten thresholds each image's IoU is above, (N,): whole numbers, whose sums are exact anywhere."""
    above: NDArray[np.bool_] = image_iou(counts)[:, None] > THRESHOLDS
    return np.asarray(above.sum(1), np.float64)


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Mean (R,) of values (N,); nan without weight."""
    total = weights.sum(1)
    return quotient(weights @ values, total)
