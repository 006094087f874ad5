"""Where the points go: every wrong pixel gets the first part, in this order, that explains it.

    input size    wrong as the truth is when it is averaged to the model's input and enlarged again
    output grid   the same with the grid of the logits, whose cells are several pixels wide
    label errors  a thick region in which the model is sure and the label says something else: suspected
    missed        an object of which less than a tenth was found, or one that is not there
    border        within BAND pixels of a border between labels
    confused      one foreground class for another
    outline       the rest: found objects that reach too far, or not far enough

Before them stands the decision rule: what another decision (`decision.Decision`) on the same probabilities changes. A
part is worth what the score rises when its pixels are set right, after those of the parts before it; so the parts add
up to what is missing to a perfect score, and the decision's may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Mask
from segformer_spark.metrics.parts import BORDER, CONFUSED, GRID, INPUT, LABELS, MISSED, OUTLINE

BAND = 2
SURE = 0.95
_FOUND_SHARE = 0.1
_THICK = 3
_LEAST_PIXELS, _LEAST_SHARE = 64, 0.001

Region = NDArray[np.bool_]


@dataclass(frozen=True)
class Shown:
    """What the model was shown of an image.

    Attributes:
        input_size: (height, width) of its input.
        grid: (height, width) of its logits.
    """

    input_size: tuple[int, int]
    grid: tuple[int, int]


def parts_of(
    ids: Mask,
    truth: Mask,
    num_classes: int,
    background: int | None,
    confidence: NDArray[np.float32] | None = None,
    shown: Shown | None = None,
) -> NDArray[np.uint8]:
    """The part (H, W) of every wrong pixel, from 1 on; 0 where the prediction is right or there is no label.

    Args:
        confidence: how probable the class is; None: no label is suspected.
        shown: None: nothing is explained by sizes, as for crops and for masks made elsewhere.
    """
    wrong = (ids != truth) & (truth < num_classes)
    parts = np.zeros(ids.shape, np.uint8)
    if not wrong.any():
        return parts
    if shown is not None:
        for part, size in ((INPUT, shown.input_size), (GRID, shown.grid)):
            if size[0] < truth.shape[0] or size[1] < truth.shape[1]:
                _claim(parts, wrong & (coarse_truth(truth, size, num_classes) == ids), part)
    if confidence is not None:
        _claim(parts, wrong & _suspected(wrong & (parts == 0), confidence), LABELS)
    _claim(parts, wrong & _missed(ids, truth, num_classes, background), MISSED)
    _claim(parts, wrong & _band(truth, num_classes), BORDER)
    if background is not None:
        _claim(parts, wrong & (ids != background) & (truth != background), CONFUSED)
    else:
        _claim(parts, wrong, CONFUSED)
    _claim(parts, wrong, OUTLINE)
    return parts


def _claim(parts: NDArray[np.uint8], region: Region, part: int) -> None:
    parts[region & (parts == 0)] = part


def coarse_truth(truth: Mask, size: tuple[int, int], num_classes: int) -> Mask:
    """The best that a map of `size` can say: shares of each class in its cells, enlarged, the largest of them."""
    height, width = truth.shape
    cells = (min(size[1], width), min(size[0], height))
    best = np.full(truth.shape, -1.0, np.float32)
    ids = np.zeros(truth.shape, truth.dtype)
    for index in np.unique(truth[truth < num_classes]):
        share = cv2.resize((truth == index).astype(np.float32), cells, interpolation=cv2.INTER_AREA)
        whole = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
        takes = whole > best
        ids[takes], best[takes] = index, whole[takes]
    return ids


def _suspected(wrong: Region, confidence: NDArray[np.float32]) -> Region:
    least = max(_LEAST_PIXELS, _LEAST_SHARE * wrong.size)
    number, regions, facts, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8), connectivity=4)
    thick = cv2.distanceTransform(wrong.astype(np.uint8), cv2.DIST_L2, 3) > _THICK
    sums = np.bincount(regions.ravel(), weights=confidence.ravel().astype(np.float64), minlength=number)
    areas = facts[:, cv2.CC_STAT_AREA]
    is_thick = np.bincount(regions.ravel(), weights=thick.ravel(), minlength=number) > 0
    chosen = (areas >= least) & (sums / np.maximum(areas, 1) >= SURE) & is_thick
    chosen[0] = False
    return np.asarray(chosen[regions])


def _missed(ids: Mask, truth: Mask, num_classes: int, background: int | None) -> Region:
    """Objects of which less than a tenth was found, and predicted ones that are not there."""
    known = truth < num_classes
    out = np.zeros(ids.shape, np.bool_)
    if background is not None:
        found, there = (ids != background) & known, (truth != background) & known
        return _unmatched(there, found) | _unmatched(found, there)
    for index in np.unique(truth[known]):
        out |= _unmatched(truth == index, ids == index)
    return out


def _unmatched(objects: Region, matched: Region) -> Region:
    number, regions, facts, _ = cv2.connectedComponentsWithStats(objects.astype(np.uint8), connectivity=8)
    hits = np.bincount(regions[matched], minlength=number)
    missed = hits < _FOUND_SHARE * facts[:, cv2.CC_STAT_AREA]
    missed[0] = False
    return np.asarray(missed[regions])


def _band(truth: Mask, num_classes: int) -> Region:
    """Pixels within BAND of a pixel with another label; pixels without a label make no border."""
    side = 2 * BAND + 1
    square = np.ones((side, side), np.uint8)
    void = truth >= num_classes
    lowest = cv2.erode(np.where(void, 255, truth).astype(np.uint8), square)
    highest = cv2.dilate(np.where(void, 0, truth).astype(np.uint8), square)
    return np.asarray(~void & ((lowest != truth) | (highest != truth)))
