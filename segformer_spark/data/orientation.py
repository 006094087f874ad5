"""EXIF orientation (tag 274): pixels as the file stores them, or turned upright (`data.exif_orientation`).

Exif 2.32, 4.6.4 A: the tag says where row 0 and column 0 of the stored pixels lie in the upright picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.image_header import ImageHeader
from segformer_spark.errors import DataError

Scalar = TypeVar("Scalar", bound=np.generic)

TRANSPOSED = (5, 6, 7, 8)
"""Orientations whose rows are shown as columns."""

_INVERSE = {6: 8, 8: 6}


def turn_upright(pixels: NDArray[Scalar], orientation: int) -> NDArray[Scalar]:
    """Stored pixels (H, W, ...) -> as they are to be looked at."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels if orientation == 1 else np.ascontiguousarray(pixels)


def turn_back(pixels: NDArray[Scalar], orientation: int) -> NDArray[Scalar]:
    """The inverse of `turn_upright`."""
    return turn_upright(pixels, _INVERSE.get(orientation, orientation))


def refuse_other_orientation(image: ImageHeader, mask: ImageHeader, image_path: Path, mask_path: Path) -> None:
    """Raise DataError for a turned image whose mask has another tag or none: whether the mask is turned cannot be seen.

    Sizes tell nothing for square images and half turns.
    """
    if image.orientation != mask.orientation and image.orientation != 1:
        has = "none" if mask.orientation == 1 else str(mask.orientation)
        raise DataError(
            f"{image_path}: the image has EXIF orientation {image.orientation}, its mask {mask_path} has {has}",
            "Set data.exif_orientation: stored if the mask was drawn over the pixels as the file stores them, or "
            "upright if it was drawn over the image as viewers show it.",
        )
