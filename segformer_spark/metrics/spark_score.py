"""The official SPARK stream-1 score (SPARK 2024 challenge description).

Per class (body, panels): the share of images whose IoU is above t, averaged over t = 0.50, 0.55, ..., 0.95. For panels,
images whose true panel pixels are fewer than 5 % of the true body pixels are left out. Score = mean of both classes.

The description leaves two points open; both choices are made here and nowhere else:
- "above t" is strict: IoU > t.
- An image where neither truth nor prediction has a pixel of the class has IoU 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segformer_spark.metrics.confusion import OVERLAP, PREDICTED, TRUTH

THRESHOLDS = np.arange(50, 100, 5) / 100
MIN_PANEL_SHARE = 0.05
_EMPTY_IOU = 1.0

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class SparkScore:
    """`score` and its two parts; None where no image counts. `num_panel_images` of `num_images` count for panels."""

    score: float | None
    body: float | None
    panels: float | None
    num_images: int
    num_panel_images: int


def image_iou(counts: Counts, empty: float = _EMPTY_IOU) -> NDArray[np.float64]:
    """IoU per image of one class.

    Args:
        counts: int64 (..., 3): predicted, true and overlapping pixels.
        empty: the value where neither truth nor prediction has a pixel; the default is that of the score.
    """
    overlap = counts[..., OVERLAP].astype(np.float64)
    union = counts[..., PREDICTED] + counts[..., TRUTH] - counts[..., OVERLAP]
    iou: NDArray[np.float64] = np.divide(overlap, union, out=np.full_like(overlap, empty), where=union > 0)
    return iou


def counts_for_panels(body: Counts, panels: Counts) -> NDArray[np.bool_]:
    """Which images count for panels: true panels are at least 5 % of the true body."""
    # In integers: 0.05 is not exact in binary.
    return 20 * panels[..., TRUTH] >= body[..., TRUTH]


def share_above_thresholds(iou: NDArray[np.float64]) -> float | None:
    """Mean over the ten thresholds of the share of images above it; None without images."""
    if len(iou) == 0:
        return None
    return float((iou[None, :] > THRESHOLDS[:, None]).mean())


def spark_score(body: Counts, panels: Counts) -> SparkScore:
    """The score of a set of images.

    Args:
        body, panels: int64 (N, 3): predicted, true and overlapping pixels per image.
    """
    counted = counts_for_panels(body, panels)
    body_score = share_above_thresholds(image_iou(body))
    panel_score = share_above_thresholds(image_iou(panels)[counted])
    parts = [part for part in (body_score, panel_score) if part is not None]
    score = sum(parts) / len(parts) if parts else None
    return SparkScore(score, body_score, panel_score, len(body), int(counted.sum()))
