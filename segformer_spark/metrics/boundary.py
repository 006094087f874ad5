"""Boundary IoU (Cheng et al., CVPR 2021; arXiv 2103.16562): the IoU of what lies within a width of the boundaries.

The boundary region of a mask are its own pixels within `width` pixels of a pixel outside of it; the image's border
counts as outside, as in the authors' code. Pixels without a label belong to no mask.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

DIAGONAL_SHARE = 0.02
"""The width of the paper, as a share of the image's diagonal."""

Region = NDArray[np.uint8]

_SQUARE = np.ones((3, 3), np.uint8)


def boundary_width(size: tuple[int, int]) -> int:
    """The paper's width in pixels for an image of (height, width)."""
    return max(1, round(DIAGONAL_SHARE * float(np.hypot(*size))))


def boundary_region(mask: Region, width: int) -> Region:
    """The pixels (H, W) of a mask of zeros and ones within `width` of its outside, in steps to eight neighbours."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, _SQUARE, iterations=width)[1:-1, 1:-1]
    return np.asarray(mask - inner)


def boundary_counts(prediction: Region, truth: Region, width: int) -> tuple[int, int, int]:
    """Predicted, true and overlapping pixels of the boundary regions: their IoU is the boundary IoU."""
    first, second = boundary_region(prediction, width), boundary_region(truth, width)
    return int(np.count_nonzero(first)), int(np.count_nonzero(second)), int(np.count_nonzero(first & second))
