"""IoU averaged over images and over classes, and of the worst images (Wang et al., NeurIPS 2023; arXiv 2310.19252).

With IoU(i, c) of image i and class c, defined where truth or prediction has a pixel of the class,

    mIoU^I   mean over images of the mean over their classes,
    mIoU^C   mean over classes of the mean over the images that have them,
    worst q  the same over the q % of lowest values: of images for I, of each class's images for C.

The mIoU of the data set (mIoU^D) adds up pixels first, so that large objects count most.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST = (1, 5, 10)
"""Percent of the images."""

Floats = NDArray[np.float64]


def image_wise(iou: Floats) -> dict[str, Any]:
    """{"miou_i", "miou_c", "miou_i_worst", "miou_c_worst"} of IoU (N, C), nan where undefined; None without any.

    The worst are {percent: mean}, of ceil(percent / 100 x number) values at least.
    """
    present = ~np.isnan(iou)
    of_images = _means(iou, present, 1)
    of_classes = _means(iou, present, 0)
    return {
        "miou_i": _mean(of_images),
        "miou_c": _mean(of_classes),
        "miou_i_worst": {str(q): _mean(_lowest(of_images, q)) for q in WORST},
        "miou_c_worst": {
            str(q): _mean(np.array([_lowest(iou[present[:, c], c], q).mean() for c in np.flatnonzero(present.any(0))]))
            for q in WORST
        },
    }


def _means(values: Floats, present: NDArray[np.bool_], axis: int) -> Floats:
    number = present.sum(axis)
    sums = np.where(present, values, 0).sum(axis)
    return np.asarray(sums[number > 0] / number[number > 0])


def _lowest(values: Floats, percent: int) -> Floats:
    return np.sort(values)[: math.ceil(percent / 100 * len(values))]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
