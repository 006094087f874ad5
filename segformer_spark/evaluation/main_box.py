"""The box of what a first pass found, around which a second one looks."""

from __future__ import annotations

import cv2
import numpy as np

from segformer_spark.data.dataset import Box, Mask

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
