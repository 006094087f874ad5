"""The Mix-FFN's depthwise convolution with its GELU (Xie et al. 2021, equation 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int, int]
"""Images, rows and columns of tokens (N, C) that are the pixels of maps, one row after the other."""


def depthwise_gelu(tokens: Tensor, grid: Grid, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(3 x 3 depthwise convolution), with zeros around the maps.

    Args:
        tokens: (N, C).
        weight: (C, 1, 3, 3).
        bias: (C,).
    """
    maps = tokens.view(*grid, -1).permute(0, 3, 1, 2)
    convolved = functional.conv2d(maps, weight, bias, padding=1, groups=len(weight))
    return functional.gelu(convolved.permute(0, 2, 3, 1).reshape(tokens.shape))
