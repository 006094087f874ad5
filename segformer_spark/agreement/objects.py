"""The object of an image in a segmentation, and how much its area changes between two images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image, Mask

DARK = 30
"""A pixel belongs to the stimulus when its channels add up to more."""

MIN_AREA = 50
"""Parts of a segmentation need more pixels."""

Region = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """A connected part of one class: its pixels, and its IoU with the stimulus."""

    class_id: int
    area: int
    iou: float


@dataclass(frozen=True)
class AreaChange:
    """The stimulus's part before and after; areas and change are None where no part was found."""

    area_before: int | None
    area_after: int | None
    iou_before: float
    iou_after: float

    @property
    def relative(self) -> float | None:
        """|after - before| / before."""
        if self.area_before is None or self.area_after is None:
            return None
        return abs(self.area_after - self.area_before) / self.area_before


def stimulus(image: Image) -> Region:
    """The largest 8-connected part (H, W) that is not dark; nothing in a dark image."""
    bright = (image.sum(-1, dtype=np.int32) > DARK).astype(np.uint8)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    if number < 2:
        return np.zeros(bright.shape, np.bool_)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return np.asarray(labels == largest)


def best_part(ids: Mask, region: Region, ignored: Iterable[int] = ()) -> Part | None:
    """The 8-connected part of one class, of more than MIN_AREA pixels, with the highest IoU with a region.

    Args:
        ignored: class ids that are left out.

    Returns:
        None where nothing overlaps.
    """
    best: Part | None = None
    size = int(region.sum())
    for class_id in np.setdiff1d(np.unique(ids), np.asarray(list(ignored), np.int64)):
        number, labels, stats, _ = cv2.connectedComponentsWithStats((ids == class_id).astype(np.uint8), connectivity=8)
        common = np.bincount(labels[region], minlength=number)
        for part in range(1, number):
            area = int(stats[part, cv2.CC_STAT_AREA])
            iou = float(common[part] / (area + size - common[part]))
            if area > MIN_AREA and iou > (best.iou if best else 0.0):
                best = Part(int(class_id), area, iou)
    return best


def area_change(before: tuple[Image, Mask], after: tuple[Image, Mask], ignored: Iterable[int] = ()) -> AreaChange:
    """Follow the stimulus from one image with its segmentation to another."""
    ignored = tuple(ignored)
    parts = [best_part(ids, stimulus(image), ignored) for image, ids in (before, after)]
    areas = [None if part is None else part.area for part in parts]
    ious = [0.0 if part is None else part.iou for part in parts]
    return AreaChange(areas[0], areas[1], ious[0], ious[1])
