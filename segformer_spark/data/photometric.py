"""Photometric distortion of the SegFormer paper's recipe, from SSD (Liu et al. 2016, section 2.2; as mmsegmentation).

In this order, each with probability 1/2: brightness, contrast, saturation, hue, contrast; the contrast once, before or
after the colours.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_DEGREES = 36.0
"""18 steps of OpenCV's 180 for the circle."""


def distort(image: Image, rng: np.random.Generator) -> Image:
    """A version of a uint8 (H, W, 3) RGB image in other light."""
    pixels = image.astype(np.float32)
    if rng.random() < 0.5:
        pixels = pixels + np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        pixels = _contrast(pixels, rng)
    pixels = _colors(pixels, rng)
    if not contrast_first:
        pixels = _contrast(pixels, rng)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _contrast(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return pixels * np.float32(rng.uniform(*CONTRAST)) if rng.random() < 0.5 else pixels


def _colors(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    saturate, turn = rng.random() < 0.5, rng.random() < 0.5
    factor, degrees = rng.uniform(*SATURATION), rng.uniform(-HUE_DEGREES, HUE_DEGREES)
    if not (saturate or turn):
        return pixels
    # Float HSV: hue in degrees, saturation and value from 0 to 1.
    hsv = cv2.cvtColor(np.clip(pixels, 0, 255) / np.float32(255), cv2.COLOR_RGB2HSV)
    if saturate:
        hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(factor), 0, 1)
    if turn:
        hsv[..., 0] = (hsv[..., 0] + np.float32(degrees)) % np.float32(360)
    rgb: NDArray[np.float32] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
    return rgb
