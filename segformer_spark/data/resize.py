"""Resizing of images and of class ids, and the colour that stands for nothing."""

from __future__ import annotations

from typing import Any, TypeVar

import cv2
from numpy.typing import NDArray

from segformer_spark.data.dataset import Mask

Pixels = TypeVar("Pixels", bound=NDArray[Any])

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOR: tuple[int, int, int] = (124, 116, 104)
"""The ImageNet mean in RGB: 0 after normalisation."""


def resize_image(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (H, W) or (H, W, channels) to (height, width), each axis by itself: averaged over areas where it shrinks,
    interpolated linearly where it grows.

    OpenCV's INTER_AREA averages only if no axis grows, and skips pixels otherwise.
    """
    smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
    for step, method in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if image.shape[:2] != step:
            image = cv2.resize(image, step[::-1], interpolation=method)
    return image


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize class ids to (height, width), nearest neighbour with half-pixel centres as the image's."""
    if mask.shape == size:
        return mask
    resized: Mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized
