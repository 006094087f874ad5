"""Corrections of predicted masks by what objects look like: one part, no specks, no holes.

A pixel that loses its class takes that of the nearest pixel that keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Mask


@dataclass(frozen=True)
class Postprocessing:
    """What is corrected. Areas are shares of the image.

    Attributes:
        largest: ids of classes of which only the largest connected part stays.
        min_area: connected parts of foreground classes below this area go.
        max_hole: connected parts of the background of at most this area, not at the image's border, are filled.
    """

    largest: tuple[int, ...] = field(default=())
    min_area: float = 0.0
    max_hole: float = 0.0

    @property
    def is_active(self) -> bool:
        return bool(self.largest) or self.min_area > 0 or self.max_hole > 0


def postprocess(ids: Mask, options: Postprocessing, background: int | None) -> Mask:
    """Class ids (H, W), corrected; the same array where nothing changes. Parts are connected over corners, too."""
    lost = np.zeros(ids.shape, np.bool_)
    for index in np.unique(ids):
        if index == background:
            lost |= _holes(ids == index, options.max_hole * ids.size)
        else:
            smallest = options.min_area * ids.size
            lost |= _unwanted(ids == index, smallest, only_largest=int(index) in options.largest)
    if not lost.any() or lost.all():
        return ids
    return _from_nearest(ids, lost)


def _unwanted(region: NDArray[np.bool_], smallest: float, *, only_largest: bool) -> NDArray[np.bool_]:
    if not only_largest and smallest <= 1:
        return np.zeros_like(region)
    number, parts, facts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    areas = facts[:, cv2.CC_STAT_AREA]
    goes = areas < smallest
    if only_largest and number > 1:
        goes |= np.arange(number) != 1 + int(areas[1:].argmax())
    goes[0] = False
    return np.asarray(goes[parts])


def _holes(region: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    if largest < 1:
        return np.zeros_like(region)
    # What is connected over corners around a hole closes it.
    _, parts, facts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    height, width = region.shape
    left, top = facts[:, cv2.CC_STAT_LEFT], facts[:, cv2.CC_STAT_TOP]
    right, bottom = left + facts[:, cv2.CC_STAT_WIDTH], top + facts[:, cv2.CC_STAT_HEIGHT]
    inside = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    goes = inside & (facts[:, cv2.CC_STAT_AREA] <= largest)
    goes[0] = False
    return np.asarray(goes[parts])


def _from_nearest(ids: Mask, lost: NDArray[np.bool_]) -> Mask:
    """Lost pixels take the class of the nearest pixel that is not lost."""
    _, nearest = cv2.distanceTransformWithLabels(
        lost.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    classes = np.zeros(int(nearest.max()) + 1, ids.dtype)
    kept = ~lost
    classes[nearest[kept]] = ids[kept]
    return np.where(lost, classes[nearest], ids)
