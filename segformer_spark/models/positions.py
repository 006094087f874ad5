"""Learnt positions of tokens on a grid, for grids of other sizes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resize_grid(positions: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Bicubic interpolation with antialiasing, as timm resizes the positions of a ViT.

    Args:
        positions: (1, h * w, D), row by row.
        before: (h, w).
        after: (h', w').

    Returns:
        (1, h' * w', D).
    """
    grid = positions.reshape(1, *before, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, after, mode="bicubic", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2)
