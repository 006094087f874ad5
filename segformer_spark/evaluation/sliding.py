"""Logits of a large image from overlapping windows, as the Cityscapes results of the SegFormer paper were obtained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Weights = Literal["mean", "gaussian"]

_SIGMA, _LEAST_WEIGHT = 1 / 8, 1e-3
"""Of a window's side, and of the weight in its middle, as nnU-Net has them (Isensee et al. 2021)."""


def window_starts(length: int, window: int, overlap: float, output_stride: int) -> list[int]:
    """First pixels of windows that cover `length`, neighbours sharing at least `overlap` of a window.

    Starts are multiples of the model's output stride, so that logits of neighbours fall on one grid.
    """
    if length <= window:
        return [0]
    stride = max(output_stride, int(window * (1 - overlap)) // output_stride * output_stride)
    last = math.ceil((length - window) / output_stride) * output_stride
    return [*range(0, last, stride), last]


def window_weights(kind: Weights, logits: Tensor) -> Tensor:
    """How much each position (h, w) of a window's logits (..., h, w) counts: all alike, or the middle more."""
    if kind == "mean":
        return torch.ones(logits.shape[-2:], device=logits.device)
    rows, columns = (_bell(length, logits.device) for length in logits.shape[-2:])
    return (rows[:, None] * columns).clamp(min=_LEAST_WEIGHT)


def _bell(length: int, device: torch.device) -> Tensor:
    place = torch.arange(length, device=device) - (length - 1) / 2
    return torch.exp(-0.5 * (place / (length * _SIGMA)) ** 2)


def sliding_logits(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    window: int,
    overlap: float,
    output_stride: int,
    *,
    weights: Weights = "mean",
) -> Tensor:
    """Weighted mean of the logits of all windows over each position; a window's logits live until it is added.

    Args:
        images: normalised (B, 3, H, W); sides shorter than the window are shown as they are.
        output_stride: the model's, s below.
        weights: of the positions in a window (`window_weights`).

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
            weight = window_weights(weights, logits)[:high, :wide]
            part = logits[..., :high, :wide]
            total[..., row : row + high, column : column + wide] += part if weights == "mean" else part * weight
            times[..., row : row + high, column : column + wide] += weight
    assert total is not None
    return total / times
