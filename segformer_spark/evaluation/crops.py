"""Predictions of crops: the box that a second pass looks around, and the crop's place in the whole image."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from segformer_spark.data.dataset import Box, Mask
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.window import Window

_SPECK = 0.1


def main_box(ids: Mask, background: int | None) -> Box | None:
    """The box of what was found: the largest connected part that is not background, and all parts of a tenth of it.

    None when nothing was found. Specks far from the object must not make the box as large as the image.
    """
    assert background is not None
    number, _, parts, _ = cv2.connectedComponentsWithStats((ids != background).astype(np.uint8), connectivity=8)
    if number < 2:
        return None
    parts = parts[1:]
    kept = parts[parts[:, cv2.CC_STAT_AREA] >= _SPECK * parts[:, cv2.CC_STAT_AREA].max()]
    left, top = kept[:, cv2.CC_STAT_LEFT], kept[:, cv2.CC_STAT_TOP]
    right, bottom = left + kept[:, cv2.CC_STAT_WIDTH] - 1, top + kept[:, cv2.CC_STAT_HEIGHT] - 1
    return int(left.min()), int(top.min()), int(right.max()), int(bottom.max())


def shown_size(item: EvalItem) -> tuple[int, int]:
    """(height, width) of what an item shows, at native size."""
    return item.size if item.window is None else (item.window.height, item.window.width)


def paste(crop: Tensor, whole: Tensor, window: Window) -> Tensor:
    """Put a crop (..., h, w) into `whole` (..., H, W) at its position, cut off where it reaches beyond."""
    height, width = whole.shape[-2:]
    top, left = max(0, window.top), max(0, window.left)
    bottom, right = min(height, window.top + window.height), min(width, window.left + window.width)
    part = crop[..., top - window.top : bottom - window.top, left - window.left : right - window.left]
    whole[..., top:bottom, left:right] = part
    return whole
