"""Resizing of images and of class ids, and the colour that stands for nothing."""

from __future__ import annotations

import cv2

from segformer_spark.data.dataset import Image, Mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOR: tuple[int, int, int] = (124, 116, 104)
"""The ImageNet mean in RGB: 0 after normalisation."""


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize to (height, width): area-averaged when shrinking, bilinear when growing."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Image = cv2.resize(image, size[::-1], interpolation=method)
    return resized


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize class ids to (height, width), nearest neighbour with half-pixel centres as the image's."""
    if mask.shape == size:
        return mask
    resized: Mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized
