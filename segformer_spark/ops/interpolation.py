"""Bilinear interpolation as products with narrow matrices, a band of rows at a time.

Interpolation is linear along each axis: Up(x) = R x C, with a few weights per row and column of the result. As products
over bands it needs no full-size map of its own, and its gradient is a product, too: deterministic on every device,
where torch scatters. All of it is torch's interpolate with align_corners=False, to rounding, for finite values.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.ops.constants import device_constant


@device_constant
def interpolation_matrix(length: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix (size, length) of linear interpolation."""
    with torch.autocast(device.type, enabled=False):
        identity = torch.eye(length, dtype=torch.promote_types(dtype, torch.float32))
        matrix = functional.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T
        return matrix.contiguous().to(device, dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_interpolation_matrix(length: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`interpolation_matrix`, a constant of a compiled graph."""
    return interpolation_matrix(length, size, device, dtype)


@functools.lru_cache(maxsize=4096)
def source_rows(length: int, size: int, first: int, last: int) -> slice:
    """The rows of `length` that rows first to last - 1 of `size` are made of."""
    (lowest, _), (highest, fraction) = (source_position(length, size, row) for row in (first, last - 1))
    return slice(lowest, min(highest + (2 if fraction else 1), length))


def source_position(length: int, size: int, row: int) -> tuple[int, float]:
    """The row of `length` at or before row `row` of `size`, and how far this lies from there to the next one.

    Rounded as torch does it (area_pixel_compute_source_index in aten/src/ATen/native/UpSample.h).
    """
    scale = np.float32(length) / np.float32(size)
    position = max(scale * (np.float32(row) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    whole = min(int(position), length - 1)
    return whole, float(position - np.float32(whole)) if whole < length - 1 else 0.0


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
