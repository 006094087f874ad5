"""Bilinear interpolation as products with narrow matrices, a band of rows at a time.

Interpolation is linear along each axis: Up(x) = R x C, with a few weights per row and column of the result. As products
over bands it needs no full-size map of its own, and its gradient is a product, too: deterministic on every device,
where torch scatters. All of it is torch's interpolate with align_corners=False, to rounding, for finite values.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional


@functools.lru_cache(maxsize=32)
def interpolation_matrix(length: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix (size, length) of linear interpolation."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        identity = torch.eye(length, dtype=torch.promote_types(dtype, torch.float32))
        matrix = functional.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T
        return matrix.contiguous().to(device, dtype)


@functools.lru_cache(maxsize=4096)
def source_rows(length: int, size: int, first: int, last: int) -> slice:
    """The rows of `length` that rows first to last - 1 of `size` are made of."""
    matrix = interpolation_matrix(length, size, torch.device("cpu"), torch.float32)
    columns = matrix[first:last].any(0).nonzero().flatten()
    return slice(int(columns[0]), int(columns[-1]) + 1)


def bands(size: int, height: int) -> Iterator[slice]:
    """Slices of `height` rows that cover `size`."""
    return (slice(first, min(first + height, size)) for first in range(0, size, height))


def enlarge_rows(needed: Tensor, length: int, rows: slice, size: tuple[int, int]) -> Tensor:
    """Rows `rows` of a map enlarged to `size`; differentiable.

    Args:
        needed: the `source_rows` (..., number of them, w) of a map with `length` rows.

    Returns:
        (..., number of rows, W).
    """
    if (length, needed.shape[-1]) == size:
        return needed
    touched = source_rows(length, size[0], rows.start, rows.stop)
    vertical = interpolation_matrix(length, size[0], needed.device, needed.dtype)[rows, touched]
    horizontal = interpolation_matrix(needed.shape[-1], size[1], needed.device, needed.dtype)
    return vertical @ (needed @ horizontal.T)


def enlarged_bands(maps: Tensor, size: tuple[int, int], height: int = 64) -> Iterator[tuple[slice, Tensor]]:
    """A map (C, h, w) at `size`, a band (C, number of rows, W) of at most `height` rows at a time; NaN becomes 0."""
    maps = torch.nan_to_num(maps)
    for rows in bands(size[0], height):
        needed = source_rows(maps.shape[1], size[0], rows.start, rows.stop)
        yield rows, enlarge_rows(maps[:, needed], maps.shape[1], rows, size)
