"""Masks as colours, alone and over their image."""

from __future__ import annotations

import numpy as np

from segformer_spark.data.dataset import ClassInfo, Image, Mask

_ROWS = 128
_GREY, _WHITE = (128, 128, 128), (255, 255, 255)


def ignored_color(classes: ClassInfo) -> tuple[int, int, int]:
    """Grey, or white where a class is grey."""
    return _WHITE if _GREY in classes.colors else _GREY


def color_mask(mask: Mask, classes: ClassInfo) -> Image:
    """Class ids (H, W) -> RGB (H, W, 3); ignored pixels have `ignored_color`."""
    palette = np.full((256, 3), ignored_color(classes), np.uint8)
    palette[: len(classes)] = classes.colors
    return palette[mask]


def overlay(image: Image, mask: Mask, classes: ClassInfo, alpha: float = 0.5) -> Image:
    """The image with its mask's foreground laid over it."""
    result = np.empty_like(image)
    for top in range(0, len(image), _ROWS):  # its float64 would take eight times the image's memory
        rows = slice(top, top + _ROWS)
        foreground = (mask[rows] != classes.background)[..., None]
        mixed = (1 - alpha) * image[rows] + alpha * color_mask(mask[rows], classes)
        result[rows] = np.where(foreground, mixed, image[rows])
    return result
