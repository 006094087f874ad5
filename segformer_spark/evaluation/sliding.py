"""Logits of a large image from overlapping windows, as the Cityscapes figures of the SegFormer paper were made."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from segformer_spark.models.segformer import OUTPUT_STRIDE


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows that cover `length`, neighbours sharing at least `overlap` of a window.

    Starts are multiples of the model's output stride, so that logits of neighbours fall on one grid.
    """
    if length <= window:
        return [0]
    stride = max(OUTPUT_STRIDE, int(window * (1 - overlap)) // OUTPUT_STRIDE * OUTPUT_STRIDE)
    last = math.ceil((length - window) / OUTPUT_STRIDE) * OUTPUT_STRIDE
    return [*range(0, last, stride), last]


def sliding_logits(model: Callable[[Tensor], Tensor], images: Tensor, window: int, overlap: float) -> Tensor:
    """Mean of the logits of all windows over each place.

    Args:
        images: normalised (B, 3, H, W); sides shorter than the window are shown as they are.

    Returns:
        Logits (B, C, ceil(H / 4), ceil(W / 4)).
    """
    height, width = images.shape[-2:]
    rows, columns = (math.ceil(length / OUTPUT_STRIDE) for length in (height, width))
    total: Tensor | None = None
    times = images.new_zeros(1, 1, rows, columns)
    for top in window_starts(height, window, overlap):
        for left in window_starts(width, window, overlap):
            logits = model(images[..., top : top + window, left : left + window]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], rows, columns)
            row, column = top // OUTPUT_STRIDE, left // OUTPUT_STRIDE
            high, wide = min(logits.shape[-2], rows - row), min(logits.shape[-1], columns - column)
            total[..., row : row + high, column : column + wide] += logits[..., :high, :wide]
            times[..., row : row + high, column : column + wide] += 1
    assert total is not None
    return total / times
