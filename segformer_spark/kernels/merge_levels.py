"""The decode head's levels, projected, enlarged to the finest and added (equation 4 of Xie et al. 2021, merged).

The kernel writes the widest map of the network once: it projects the finest level, adds the others and sums the values
and squares that the batch norm needs, all in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.registry import dot, dot_options, jit, register, tl
from segformer_spark.ops.interpolation import constant_interpolation_matrix

_PIXELS, _CHANNELS = 32, 64


@jit
def enlarged(level, b, y, x, d, known, h, w, H, W, D):  # type: ignore[no-untyped-def]
    """A level's values at pixels x of row y."""
    row = tl.maximum((y + 0.5) * (h / H) - 0.5, 0.0)
    col = tl.maximum((x + 0.5) * (w / W) - 0.5, 0.0)
    top, left = tl.minimum(row.to(tl.int32), h - 1), tl.minimum(col.to(tl.int32), w - 1)
    down, along = row - top, (col - left)[:, None]
    bottom, right = tl.minimum(top + 1, h - 1), tl.minimum(left + 1, w - 1)
    upper = level + (b * h + top) * w * D  # b has 64 bits, what is added to a row's start 32
    lower = level + (b * h + bottom) * w * D
    at_left, at_right = left[:, None] * D + d[None, :], right[:, None] * D + d[None, :]
    upper_left = tl.load(upper + at_left, mask=known, other=0.0).to(tl.float32)
    upper_right = tl.load(upper + at_right, mask=known, other=0.0).to(tl.float32)
    lower_left = tl.load(lower + at_left, mask=known, other=0.0).to(tl.float32)
    lower_right = tl.load(lower + at_right, mask=known, other=0.0).to(tl.float32)
    above = upper_left + (upper_right - upper_left) * along
    below = lower_left + (lower_right - lower_left) * along
    return above + (below - above) * down


@jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    finest, weight, second, third, fourth, out, sums, H, W, C, D, h2, w2, h3, w3, h4, w4,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    block, line = tl.program_id(1), tl.program_id(2)
    b, y = (line // H).to(tl.int64), line % H
    x = block * PIXELS + tl.arange(0, PIXELS)
    d, k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, INNER)
    known = (x < W)[:, None] & (d < D)[None, :]
    line_start = tl.cast(line, tl.int64) * W
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for start in range(0, C, INNER):
        c = start + k
        maps = tl.load(
            finest + line_start * C + x[:, None] * C + c[None, :], mask=(x < W)[:, None] & (c < C)[None, :], other=0.0
        )
        own = tl.load(weight + d[None, :] * C + c[:, None], mask=(c < C)[:, None] & (d < D)[None, :], other=0.0)
        total = dot(maps, own, total, PRECISION, WIDEN)
    total += enlarged(second, b, y, x, d, known, h2, w2, H, W, D)
    total += enlarged(third, b, y, x, d, known, h3, w3, H, W, D)
    total += enlarged(fourth, b, y, x, d, known, h4, w4, H, W, D)
    stored = total.to(out.dtype.element_ty)
    tl.store(out + line_start * D + x[:, None] * D + d[None, :], stored, mask=known)
    value = tl.where(known, stored.to(tl.float32), 0.0)
    place = sums + (line * tl.num_programs(1) + block).to(tl.int64) * 2 * D + d
    tl.store(place, tl.sum(value, 0), mask=d < D)
    tl.store(place + D, tl.sum(value * value, 0), mask=d < D)


def _fused_merge(
    finest: Tensor, weight: Tensor, second: Tensor, third: Tensor, fourth: Tensor
) -> tuple[Tensor, Tensor]:
    batch, height, width, channels = finest.shape
    wide = len(weight)
    out, sums = _shapes(finest, weight)
    grid = (-(-wide // _CHANNELS), -(-width // _PIXELS), batch * height)
    sizes = [side for level in (second, third, fourth) for side in level.shape[1:3]]
    _merge_kernel[grid](
        finest, weight, second, third, fourth, out, sums, height, width, channels, wide, *sizes,
        PIXELS=_PIXELS, CHANNELS=_CHANNELS, INNER=max(16, min(64, 1 << (channels - 1).bit_length())),
        **dot_options(finest.dtype),
    )  # fmt: skip
    return out, sums


def _plain_merge(
    finest: Tensor, weight: Tensor, second: Tensor, third: Tensor, fourth: Tensor
) -> tuple[Tensor, Tensor]:
    out = add_enlarged(functional.linear(finest, weight), (second, third, fourth))
    rows = out.flatten(0, 1).to(torch.promote_types(out.dtype, torch.float32))
    return out, torch.stack([rows.sum(1), rows.square().sum(1)], 1)


def _cost(finest: Tensor, weight: Tensor, *levels: Tensor) -> Cost:
    pixels, wide = finest[..., 0].numel(), len(weight)
    read = nbytes(finest, weight, *levels)
    sums = 8 * wide * -(-finest.shape[2] // _PIXELS) * finest.shape[0] * finest.shape[1]
    written = pixels * wide * finest.itemsize + sums
    return Cost(2.0 * pixels * wide * finest.shape[-1], read, written, product=finest.dtype)


def _shapes(finest: Tensor, weight: Tensor, *levels: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = finest.shape
    out = finest.new_empty(batch, height, width, len(weight))
    wide = torch.promote_types(finest.dtype, torch.float32)
    return out, finest.new_empty(batch * height * -(-width // _PIXELS), 2, len(weight), dtype=wide)


register(
    "merge_levels(Tensor finest, Tensor weight, Tensor second, Tensor third, Tensor fourth) -> (Tensor, Tensor)",
    plain=_plain_merge,
    fused=_fused_merge,
    shapes=_shapes,
    cost=_cost,
    multiplies=True,
)


def _matrix(length: int, size: int, maps: Tensor) -> Tensor:
    matrix: Tensor = constant_interpolation_matrix(length, size, maps.device, maps.dtype)
    return matrix


def add_enlarged(base: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """base + the levels enlarged to its size: rows level by level, side by side, then all columns in one product."""
    batch, height, width, channels = base.shape
    columns = [level.shape[2] for level in levels]
    tall = base.new_empty(batch, height, sum(columns), channels)
    for level, part in zip(levels, tall.split_with_sizes(columns, 2), strict=True):
        vertical = _matrix(level.shape[1], height, base).expand(batch, -1, -1)
        part.view(batch, height, -1).baddbmm_(vertical, level.reshape(batch, level.shape[1], -1), beta=0)
    horizontal = torch.cat([_matrix(length, width, base) for length in columns], 1)
    lines = batch * height
    total = torch.baddbmm(
        base.view(lines, width, channels), horizontal.expand(lines, -1, -1), tall.view(lines, -1, channels)
    )
    return total.view(base.shape)


def _of_levels(grad: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The gradient (B, H, W, D) of a sum of enlarged levels for each of them: `add_enlarged` the other way."""
    batch, height, width, channels = grad.shape
    columns = [size[1] for size in sizes]
    horizontal = torch.cat([_matrix(length, width, grad) for length in columns], 1).T
    lines = batch * height
    tall = torch.bmm(horizontal.expand(lines, -1, -1), grad.view(lines, width, channels))
    found = []
    for (rows, own), part in zip(
        sizes, tall.view(batch, height, -1, channels).split_with_sizes(columns, 2), strict=True
    ):
        vertical = _matrix(rows, height, grad).T.expand(batch, -1, -1)
        found.append(torch.bmm(vertical, part.view(batch, height, -1)).view(batch, rows, own, channels))
    return found


class _EnlargeAndAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, *levels: Tensor) -> Tensor:
        ctx.sizes = [(level.shape[1], level.shape[2]) for level in levels]
        return add_enlarged(base, levels)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad: Tensor = grads[0].contiguous()
        return grad, *_of_levels(grad, ctx.sizes)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, finest: Tensor, weight: Tensor, *levels: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(finest, weight)
        ctx.sizes = [(level.shape[1], level.shape[2]) for level in levels]
        merged, sums = torch.ops.segformer_spark.merge_levels(finest, weight, *levels)
        ctx.mark_non_differentiable(sums)
        return merged, sums

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        finest, weight = ctx.saved_tensors
        grad: Tensor = grads[0].contiguous()
        of_finest = grad @ weight if ctx.needs_input_grad[0] else None
        of_weight = grad.flatten(0, 2).T @ finest.flatten(0, 2)
        return of_finest, of_weight, *_of_levels(grad, ctx.sizes)


def projected(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> list[Tensor]:
    """All levels but the finest. A constant added to the coarsest is a constant everywhere, as the weights of an
    interpolation sum to 1: the bias goes there, and its gradient is a short sum."""
    *between, last = (functional.linear(maps, weight) for maps, weight in zip(features[1:], weights[1:], strict=True))
    return [*between, last + bias]


def merge_levels(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """sum_i Up(x_i W_i^T) + bias.

    Args:
        features: (B, H_i, W_i, C_i), finest first.
        weights: (D, C_i) in the features' type.
        bias: (D,).

    Returns:
        (B, H_0, W_0, D), contiguous.
    """
    merged: Tensor = _EnlargeAndAdd.apply(
        functional.linear(features[0], weights[0]), *projected(features, weights, bias)
    )
    return merged


MERGE = ("merge_levels",)
"""The operations of `fused_merge_levels`."""


def fused_merge_levels(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    """`merge_levels` of four levels as one operation, and the sums of values and squares of its tiles (T, 2, D)."""
    result: tuple[Tensor, Tensor] = _Merge.apply(
        features[0].contiguous(), weights[0], *projected(features, weights, bias)
    )
    return result
