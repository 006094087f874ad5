"""Rectangles of an image: around an object, cut out, put back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from segformer_spark.data.dataset import IGNORE_INDEX, Box, Image, Mask


@dataclass(frozen=True)
class Window:
    """A rectangle in pixels of the native image; it may reach outside of it."""

    top: int
    left: int
    height: int
    width: int


def object_box(mask: Mask, background: int | None) -> Box | None:
    """The smallest box around the pixels that are neither background nor ignored; None without any."""
    found = mask != IGNORE_INDEX
    if background is not None:
        found &= mask != background
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def window_around(
    box: Box,
    margin: float,
    image_size: tuple[int, int],
    *,
    ratio: tuple[int, int] = (1, 1),
    shift: tuple[float, float] = (0, 0),
) -> Window:
    """The smallest window of a ratio of sides around a box.

    Args:
        margin: on each side, relative to the window without it; for a square to the box's longer side.
        image_size: (height, width). The window is no larger than the smallest of its ratio around the image, and moved
            inside where it fits.
        ratio: of height to width.
        shift: (down, right), relative to the window's sides.
    """
    x_min, y_min, x_max, y_max = box
    sides = [
        min(math.ceil(tight * (1 + 2 * margin)), math.ceil(largest))
        for tight, largest in zip(
            _covering((y_max - y_min + 1, x_max - x_min + 1), ratio), _covering(image_size, ratio), strict=True
        )
    ]
    centers = ((y_min + y_max + 1) / 2 + shift[0] * sides[0], (x_min + x_max + 1) / 2 + shift[1] * sides[1])
    top, left = (
        min(max(round(center - side / 2), min(0, length - side)), max(0, length - side))
        for center, side, length in zip(centers, sides, image_size, strict=True)
    )
    return Window(top, left, *sides)


def _covering(size: tuple[int, int], ratio: tuple[int, int]) -> tuple[float, float]:
    """(height, width) of the smallest rectangle of this ratio that covers `size`."""
    height, width = size
    return max(height, width * ratio[0] / ratio[1]), max(width, height * ratio[1] / ratio[0])


def cut_image(image: Image, window: Window, fill: tuple[int, int, int]) -> Image:
    """The pixels of the window; `fill` outside the image."""
    inside, border = _inside(window, image.shape[:2])
    part = image[inside]
    return part if not any(border) else cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=fill)


def cut_mask(mask: Mask, window: Window) -> Mask:
    """The labels of the window; IGNORE_INDEX outside the image."""
    inside, border = _inside(window, mask.shape)
    part = mask[inside]
    return part if not any(border) else cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=IGNORE_INDEX)


def _inside(window: Window, size: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[int, int, int, int]]:
    """The part of the window inside the image, and the (top, bottom, left, right) that is outside."""
    bottom, right = window.top + window.height, window.left + window.width
    rows = slice(max(0, window.top), min(size[0], bottom))
    columns = slice(max(0, window.left), min(size[1], right))
    border = (rows.start - window.top, bottom - rows.stop, columns.start - window.left, right - columns.stop)
    return (rows, columns), border
