"""Class weights from the pixels of a training split, each scaled to a mean of 1 over the classes present.

- inverse: 1 / share of the class.
- median_frequency: median of the frequencies / the class's, where a class's frequency is its share of the pixels of
  the images in which it occurs (Eigen and Fergus 2015, section 6.3.2). `auto` is this one.
- effective_number: (1 - b) / (1 - b^n) with b = (N - 1) / N (Cui et al. 2019, equation 2); N is the number of images,
  n the class's pixels in units of a mean image, so that the effective number of a class tends to N.

A class without a pixel gets weight 1: no formula covers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.errors import DataError

RULES = ("inverse", "median_frequency", "effective_number")


def class_weights(rule: str, images: Sequence[Sequence[int]]) -> list[float]:
    """Weights of all classes.

    Args:
        rule: auto or one of RULES.
        images: pixels per class of every image.

    Raises:
        DataError: there is no labelled pixel.
    """
    pixels = np.asarray(images, np.float64)
    totals = pixels.sum(0) if pixels.size else np.zeros(0)
    present = totals > 0
    if not present.any():
        raise DataError("class weights: no image has a labelled pixel")
    rules: dict[str, Any] = {"inverse": _inverse, "median_frequency": _median_frequency, "effective_number": _effective}
    raw = rules["median_frequency" if rule == "auto" else rule](pixels[:, present])
    weights = np.ones(len(totals))
    weights[present] = raw / raw.mean()
    return [float(weight) for weight in weights]


def _inverse(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = pixels.sum() / pixels.sum(0)
    return inverse


def _median_frequency(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    per_image = pixels.sum(1, keepdims=True)
    frequency = pixels.sum(0) / (per_image * (pixels > 0)).sum(0)
    weights: NDArray[np.float64] = np.median(frequency) / frequency
    return weights


def _effective(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    num_images = len(pixels)
    if num_images == 1:
        return np.ones(pixels.shape[1])
    beta = (num_images - 1) / num_images
    number = pixels.sum(0) / (pixels.sum() / num_images)
    weights: NDArray[np.float64] = (1 - beta) / -np.expm1(number * np.log(beta))
    return weights
