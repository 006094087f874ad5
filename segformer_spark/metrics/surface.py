"""Distances between the edges of two masks: boundary F1, normalised surface distance, 95 % Hausdorff distance.

The edge of a mask are its pixels with a neighbour above, below, left or right outside of it; the image's border counts
as outside (as in MONAI). Edge pixels beside pixels without a label are left out: nobody knows where the object ends.

Within a tolerance t,

    precision    share of the predicted edge within t of the true edge,
    recall       share of the true edge within t of the predicted edge,
    boundary F1  their harmonic mean (Csurka et al., BMVC 2013),
    NSD          share of both edges together within t of the other (Nikolov et al. 2018; arXiv 1809.04430).

HD95 is the larger of the two 95 % quantiles of the distances of one edge to the other (Huttenlocher et al. 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Region = NDArray[np.uint8]
Spacing = tuple[float, float]

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_EXACT_SQUARE = 2**21
"""Squared distances below this are the nearest whole number to the square of their float32 root."""
_SQUARE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class EdgeMatch:
    """Two edges compared.

    Attributes:
        predicted, true: their numbers of pixels.
        matched: per tolerance (pixels of the predicted, of the true edge) within it of the other.
        hd95: the 95 % Hausdorff distance; nan where an edge is empty.
    """

    predicted: int
    true: int
    matched: tuple[tuple[int, int], ...]
    hd95: float


def edge(mask: Region) -> NDArray[np.bool_]:
    """The edge (H, W) of a mask of zeros and ones."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return np.asarray((mask - cv2.erode(framed, _CROSS)[1:-1, 1:-1]) > 0)


def match_edges(
    prediction: Region,
    truth: Region,
    tolerances: Sequence[float],
    spacing: Spacing = (1.0, 1.0),
    void: Region | None = None,
) -> EdgeMatch:
    """Compare the edges of two masks of zeros and ones.

    Args:
        tolerances: in the unit of the spacing.
        spacing: height and width of a pixel.
        void: ones where there is no label.
    """
    box = _box(prediction | truth)
    if box is None:
        return EdgeMatch(0, 0, ((0, 0),) * len(tolerances), float("nan"))
    first, second = edge(prediction[box]), edge(truth[box])
    if void is not None and void.any():
        known = cv2.dilate(void, _SQUARE)[box] == 0
        first, second = first & known, second & known
    numbers = int(np.count_nonzero(first)), int(np.count_nonzero(second))
    if not numbers[0] or not numbers[1]:
        return EdgeMatch(*numbers, ((0, 0),) * len(tolerances), float("nan"))
    to_true, to_predicted = _distances(second, spacing)[first], _distances(first, spacing)[second]
    matched = tuple((int((to_true <= t).sum()), int((to_predicted <= t).sum())) for t in tolerances)
    hd95 = max(float(np.quantile(to_true, 0.95)), float(np.quantile(to_predicted, 0.95)))
    return EdgeMatch(*numbers, matched, hd95)


def _box(mask: Region) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _distances(edges: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float64]:
    """Distance (H, W) of every pixel to the nearest edge pixel."""
    if spacing[0] == spacing[1] and sum(side**2 for side in edges.shape) < _EXACT_SQUARE:
        pixels = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # The last bit of its square roots depends on where in memory they lie; the squares are whole numbers.
        return np.asarray(np.sqrt(np.rint(np.square(pixels, dtype=np.float64))) * spacing[0])
    return np.asarray(ndimage.distance_transform_edt(~edges, sampling=spacing))
