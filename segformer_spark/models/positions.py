"""Learnt positions of tokens on a grid, for grids of other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.errors import CheckpointError

_NAME = "pos_embed"


def fit_positions(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Positions (1, N, D) brought to the target's number of tokens, and what was; a class token before them stays."""
    fitted, resized = dict(state), []
    for name in state.keys() & target.keys():
        own, wanted = state[name], target[name]
        around, _, last = name.rpartition(_NAME)
        if last or own.shape == wanted.shape or own.ndim != 3 or own.shape[-1] != wanted.shape[-1]:
            continue
        extra = int(f"{around}cls_token" in target)
        fitted[name] = resize_positions(own, wanted.shape[1], extra)
        resized.append(f"{name} {_grid(own, extra)} to {_grid(wanted, extra)}")
    return fitted, resized


def resize_positions(positions: Tensor, num_tokens: int, num_extra: int) -> Tensor:
    """Bicubic interpolation of a square grid of positions.

    Args:
        positions: (1, extra + n * n, D).
        num_tokens: extra + m * m.
        num_extra: tokens before the grid.

    Raises:
        CheckpointError: either grid is no square.
    """
    before, after = (_side(count - num_extra) for count in (positions.shape[1], num_tokens))
    grid = resize_grid(positions[:, num_extra:].float(), (before, before), (after, after))
    return torch.cat([positions[:, :num_extra].float(), grid], 1).to(positions.dtype)


def _side(count: int) -> int:
    side = math.isqrt(count)
    if side * side != count:
        raise CheckpointError(f"a grid of {count} positions is no square: weights and model do not go together")
    return side


def _grid(positions: Tensor, extra: int) -> str:
    side = _side(positions.shape[1] - extra)
    return f"{side} x {side}"


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
