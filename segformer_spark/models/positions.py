"""Learnt positions of tokens on a grid, for grids of other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.errors import CheckpointError

_NAME = "pos_embed"


Grid = tuple[int, int]
"""Rows and columns of positions."""


def fit_positions(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], before: Grid | None = None, after: Grid | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Positions (1, N, D) brought to the target's grid, and what was; a class token before them stays.

    Args:
        before, after: the grids of `state` and `target`; None for squares.

    Raises:
        CheckpointError: the number of positions is not that of the grid.
    """
    fitted, resized = dict(state), []
    for name in state.keys() & target.keys():
        own, wanted = state[name], target[name]
        around, _, last = name.rpartition(_NAME)
        if last or own.ndim != 3 or own.shape[-1] != wanted.shape[-1]:
            continue
        if own.shape == wanted.shape and (before is None or before == after):
            continue
        extra = int(f"{around}cls_token" in target)
        old, new = _grid(own.shape[1] - extra, before), _grid(wanted.shape[1] - extra, after)
        grid = resize_grid(own[:, extra:].float(), old, new)
        fitted[name] = torch.cat([own[:, :extra].float(), grid], 1).to(own.dtype)
        resized.append(f"{name} {old[0]} x {old[1]} to {new[0]} x {new[1]}")
    return fitted, resized


def _grid(count: int, known: Grid | None) -> Grid:
    """The grid of so many positions: the known one, or a square."""
    side = math.isqrt(count)
    rows, columns = known or (side, side)
    if rows * columns != count:
        what = f"not {rows} x {columns}" if known else "no square"
        raise CheckpointError(f"a grid of {count} positions is {what}: weights and model do not go together")
    return rows, columns


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
