"""Metrics from a confusion matrix: IoU, Dice, precision and recall per class, their means, pixel accuracy.

A quotient without a pixel in its denominator is undefined: null, and left out of means. A class absent from the truth
but predicted has IoU 0 and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def class_scores(confusion: NDArray[np.int64], ignored: NDArray[np.int64] | None = None) -> dict[str, Floats]:
    """{"iou", "dice", "precision", "recall"}: arrays (C,), nan where undefined.

    Args:
        confusion: int64 (C, C), rows truth, columns prediction.
        ignored: int64 (C,), predictions on unlabelled pixels, to be counted as false positives; None leaves them out.
    """
    overlap = np.diagonal(confusion).astype(np.float64)
    predicted, truth = confusion.sum(0).astype(np.float64), confusion.sum(1).astype(np.float64)
    if ignored is not None:
        predicted += ignored
    return {
        "iou": quotient(overlap, predicted + truth - overlap),
        "dice": quotient(2 * overlap, predicted + truth),
        "precision": quotient(overlap, predicted),
        "recall": quotient(overlap, truth),
    }


def summarize(
    confusion: NDArray[np.int64],
    class_names: Sequence[str],
    background: int | None,
    ignored: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """All metrics of one confusion matrix, JSON-ready: undefined values are None.

    Without a background class there is no "miou_without_background", which would be the mIoU once more.

    A mean over classes is undefined where fewer than two have a pixel in truth or prediction: masks that say nothing
    but one class, or nothing at all, would score 1.

    Unlabelled pixels do not count. Where there are some, "miou_void_as_error" is the mIoU when what was predicted on
    them (`ignored`, int64 (C,)) counts as false positives; published results on CamVid differ in this rule.
    """
    scores = class_scores(confusion)
    comparable = np.count_nonzero(~np.isnan(scores["iou"])) >= 2
    foreground = [index for index in range(len(class_names)) if index != background]
    total = confusion.sum()
    has_void = ignored is not None and bool(ignored.sum())
    void = {"miou_void_as_error": _mean(class_scores(confusion, ignored)["iou"])} if has_void else {}
    without = {} if background is None else {"miou_without_background": _mean(scores["iou"][foreground])}
    means = {
        "miou": _mean(scores["iou"]),
        **void,
        **without,
        "mean_dice": _mean(scores["dice"]),
    }
    return {
        **(means if comparable else dict.fromkeys(means)),
        "pixel_accuracy": None if total == 0 else float(np.diagonal(confusion).sum() / total),
        "num_pixels": int(total),
        "per_class": {
            name: {key: _or_none(values[index]) for key, values in scores.items()}
            for index, name in enumerate(class_names)
        },
    }


def quotient(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, nan where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
