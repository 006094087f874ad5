"""The decode head's levels, projected, enlarged to the finest and added (equation 4 of Xie et al. 2021, merged)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.ops.interpolation import constant_interpolation_matrix


class _EnlargeAndAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, *levels: Tensor) -> Tensor:
        batch, height, width, channels = base.shape
        ctx.sizes = [(level.shape[1], level.shape[2]) for level in levels]
        wide = [_matrix(level.shape[2], width, base) @ level for level in levels]
        vertical = torch.cat([_matrix(level.shape[1], height, base) for level in levels], 1)
        rows = torch.cat(wide, 1).view(batch, -1, width * channels)
        total = torch.baddbmm(base.view(batch, height, -1), vertical.expand(batch, -1, -1), rows)
        return total.view(base.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad: Tensor = grads[0].contiguous()
        batch, height, width, channels = grad.shape
        of_levels = []
        for rows, columns in ctx.sizes:
            vertical = _matrix(rows, height, grad).T.expand(batch, -1, -1)
            wide = torch.bmm(vertical, grad.view(batch, height, -1)).view(batch, rows, width, channels)
            of_levels.append(_matrix(columns, width, grad).T @ wide)
        return grad, *of_levels


def _matrix(length: int, size: int, maps: Tensor) -> Tensor:
    matrix: Tensor = constant_interpolation_matrix(length, size, maps.device, maps.dtype)
    return matrix


def merge_levels(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """sum_i Up(x_i W_i^T) + bias.

    Up has weights that sum to 1, so that the gradient of a constant is the same at every level: the bias takes its from
    the coarsest, where the sum is short.

    Args:
        features: (B, H_i, W_i, C_i), finest first.
        weights: (D, C_i) in the features' type.
        bias: (D,).

    Returns:
        (B, H_0, W_0, D), contiguous.
    """
    *between, last = (functional.linear(maps, weight) for maps, weight in zip(features[1:], weights[1:], strict=True))
    # A constant added to the coarsest level is a constant everywhere.
    last = last + bias
    base = functional.linear(features[0], weights[0])
    merged: Tensor = _EnlargeAndAdd.apply(base, *between, last)
    return merged
