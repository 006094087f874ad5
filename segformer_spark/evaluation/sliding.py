"""Logits of a large image from overlapping windows, as the Cityscapes results of the SegFormer paper were obtained."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def window_starts(length: int, window: int, overlap: float, output_stride: int) -> list[int]:
    """First pixels of windows that cover `length`, neighbours sharing at least `overlap` of a window.

    Starts are multiples of the model's output stride, so that logits of neighbours fall on one grid.
    """
    if length <= window:
        return [0]
    stride = max(output_stride, int(window * (1 - overlap)) // output_stride * output_stride)
    last = math.ceil((length - window) / output_stride) * output_stride
    return [*range(0, last, stride), last]


def sliding_logits(
    model: Callable[[Tensor], Tensor], images: Tensor, window: int, overlap: float, output_stride: int
) -> Tensor:
    """Mean of the logits of all windows over each position.

    Args:
        images: normalised (B, 3, H, W); sides shorter than the window are shown as they are.
        output_stride: the model's, s below.

    Returns:
        Logits (B, C, ceil(H / s), ceil(W / s)).
    """
    height, width = images.shape[-2:]
    rows, columns = (math.ceil(length / output_stride) for length in (height, width))
    total: Tensor | None = None
    times = images.new_zeros(1, 1, rows, columns)
    for top in window_starts(height, window, overlap, output_stride):
        for left in window_starts(width, window, overlap, output_stride):
            logits = model(images[..., top : top + window, left : left + window]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], rows, columns)
            row, column = top // output_stride, left // output_stride
            high, wide = min(logits.shape[-2], rows - row), min(logits.shape[-1], columns - column)
            total[..., row : row + high, column : column + wide] += logits[..., :high, :wide]
            times[..., row : row + high, column : column + wide] += 1
    assert total is not None
    return total / times
