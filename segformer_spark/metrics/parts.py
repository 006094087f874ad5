"""What each part of the missing points is worth, from counts per image; `evaluation.missing_points` finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.metrics.confusion import overlaps
from segformer_spark.metrics.headline import Headline

INPUT, GRID, LABELS, MISSED, BORDER, CONFUSED, OUTLINE = range(1, 8)
DECISION = "decision rule"
PARTS = ("input size", "output grid", "label errors, suspected", "objects missed", "border of 2 px", "classes confused",
         "outline beyond the border")  # fmt: skip
REMEDIES = {
    DECISION: "evaluate --compare-inference --save-decision",
    PARTS[0]: "a larger data.image_size, inference.crops, or windows (inference.window)",
    PARTS[1]: "crops or windows: objects fill more cells of the grid",
    PARTS[2]: "look at the images listed under suspected_labels; data check",
    PARTS[3]: "class weights, training.loss focal_dice, more images like these",
    PARTS[4]: "training.loss boundary terms, larger inputs, --tta hflip",
    PARTS[5]: "a larger model, class weights, more epochs",
    PARTS[6]: "more epochs, a larger model, crops, corrections of --compare-inference",
}

_MOST_LISTED = 20


def missing_points(
    cells: NDArray[np.int64],
    alternative: NDArray[np.int64],
    number: int,
    class_names: Sequence[str],
    image_names: Sequence[str],
) -> dict[str, Any] | None:
    """{"metric", "score", "missing", "parts": {name: points}, "remedies", "suspected_labels"}; None without a score.

    Args:
        cells: rows (image, truth, prediction, pixels) of what was predicted.
        alternative: rows (image, part, truth, prediction, pixels) of another decision; part 0 is right.
        number: of images.
    """
    classes = len(class_names)
    known = cells[cells[:, 1] < classes]
    joint = np.zeros((number, classes, classes), np.int64)
    np.add.at(joint, (known[:, 0], known[:, 1], known[:, 2]), known[:, 3])
    first = _headline(joint, class_names)
    metric = first.names[0]
    score = first.value(metric)
    if score is None:
        return None
    names = [DECISION, *PARTS]
    values = [score]
    # What is set right is counted on the diagonal.
    for fixed in range(len(PARTS) + 1):
        rows = alternative.copy()
        right = rows[:, 1] <= fixed
        rows[right, 3] = rows[right, 2]
        joint = np.zeros((number, classes, classes), np.int64)
        np.add.at(joint, (rows[:, 0], rows[:, 2], rows[:, 3]), rows[:, 4])
        values.append(_headline(joint, class_names).value(metric) or 0.0)
    suspected = alternative[alternative[:, 1] == LABELS]
    pixels = np.bincount(suspected[:, 0], weights=suspected[:, 4], minlength=number)
    order = [int(at) for at in np.argsort(-pixels, kind="stable")[:_MOST_LISTED] if pixels[at] > 0]
    return {
        "metric": metric,
        "score": score,
        "missing": values[-1] - score,
        "parts": {name: after - before for name, before, after in zip(names, values[:-1], values[1:], strict=True)},
        "remedies": REMEDIES,
        "suspected_labels": [{"image": image_names[at], "pixels": int(pixels[at])} for at in order],
    }


def _headline(joint: NDArray[np.int64], class_names: Sequence[str]) -> Headline:
    return Headline(overlaps(joint), class_names)
