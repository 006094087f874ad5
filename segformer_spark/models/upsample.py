"""Projected maps of several resolutions, upsampled and added in place; channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segformer_spark.ops.interpolation import bands, interpolation_matrix, source_rows

BAND = 16
"""Output rows per product: such a band is made of 16 h / H + 2 of h source rows."""


def add_band(band: Tensor, source: Tensor, rows: slice, size: int) -> None:
    """Add rows `rows` of `source`, stretched to `size` rows, to `band`; not differentiable.

    Args:
        band: (N, number of rows, K).
        source: (N, h, K).
    """
    matrix = interpolation_matrix(source.shape[1], size, source.device, source.dtype)
    needed = source_rows(source.shape[1], size, rows.start, rows.stop)
    band.baddbmm_(matrix[rows, needed].expand(len(source), -1, -1), source[:, needed])


def _add(base: Tensor, source: Tensor) -> None:
    size = base.shape[1]
    for rows in bands(size, BAND):
        add_band(base[:, rows], source, rows, size)


def _transposed(grad: Tensor, length: int) -> Tensor:
    """The gradient of `_add` for its source: (N, H, K) -> (N, length, K)."""
    size = grad.shape[1]
    matrix = interpolation_matrix(length, size, grad.device, grad.dtype)
    result = grad.new_zeros(len(grad), length, grad.shape[2])
    for rows in bands(size, BAND):
        needed = source_rows(length, size, rows.start, rows.stop)
        result[:, needed].baddbmm_(matrix[rows, needed].T.expand(len(grad), -1, -1), grad[:, rows])
    return result


class _Widen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, width: int) -> Tensor:
        ctx.length = source.shape[1]
        result = source.new_zeros(len(source), width, source.shape[2])
        _add(result, source)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _transposed(grads[0].contiguous(), ctx.length), None


def widen(level: Tensor, width: int) -> Tensor:
    """Interpolate columns: (B, h, w, D) -> (B, h, width, D)."""
    batch, height, columns, channels = level.shape
    if columns == width:
        return level
    result: Tensor = _Widen.apply(level.reshape(batch * height, columns, channels), width)
    return result.view(batch, height, width, channels)


class _ProjectAndAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, finest: Tensor, weight: Tensor, bias: Tensor, *levels: Tensor) -> Tensor:
        ctx.save_for_backward(finest, weight)
        ctx.lengths = [level.shape[1] for level in levels]
        batch, height, width, _ = finest.shape
        result = torch.addmm(bias, finest.reshape(-1, finest.shape[-1]), weight.T)
        for level in levels:
            _add(result.view(batch, height, -1), level.flatten(2))
        return result.view(batch, height, width, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad: Tensor = grads[0].contiguous()
        finest, weight = ctx.saved_tensors
        pixels = grad.flatten(0, 2)
        of_finest = (pixels @ weight).view(finest.shape) if ctx.needs_input_grad[0] else None
        of_weight = pixels.T @ finest.reshape(-1, finest.shape[-1])
        of_levels = [_transposed(grad.flatten(2), h).view(len(grad), h, *grad.shape[2:]) for h in ctx.lengths]
        return of_finest, of_weight, pixels.sum(0), *of_levels


def project_and_add(finest: Tensor, weight: Tensor, bias: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """The finest map projected, plus coarser maps upsampled to its size.

    Args:
        finest: (B, H, W, C).
        weight, bias: (D, C) and (D,).
        levels: maps (B, h, W, D) that have been projected and widened.

    Returns:
        (B, H, W, D), contiguous.
    """
    result: Tensor = _ProjectAndAdd.apply(finest, weight, bias, *levels)
    return result
