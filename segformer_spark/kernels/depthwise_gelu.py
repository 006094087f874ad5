"""The Mix-FFN's depthwise convolution with its GELU (Xie et al. 2021, equation 3), as one operation each way.

For a gradient the kernel forward keeps GELU's slope beside its value, so that the one backward takes the gradients for
maps, weights and bias from one reading of each. The maps come without the bias of the linear layer that made them: it
is added here, and its gradient is summed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.registry import jit, register, tl

Grid = tuple[int, int, int]
"""Images, rows and columns of tokens (N, C) that are the pixels of maps, one row after the other."""

_CHANNELS = 64
_PIXELS_FORWARD, _PIXELS_BACKWARD = 16, 8
_SPLITS = 64
"""Programs, at most, that share the rows of a block of channels when they are summed."""


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    tokens,
    maps_bias,
    weight,
    bias,
    out,
    slope,
    H,
    W,
    C,
    KEEP: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    line = tl.program_id(2)
    y = line % H
    start = tl.cast(line, tl.int64) * W * C  # 64 bits once, 32 within a row
    own = c < C
    added = tl.load(maps_bias + c, mask=own, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([PIXELS, CHANNELS], tl.float32) + tl.load(bias + c, mask=own, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        row, col = x * 0 + y + (tap // 3 - 1), x + (tap % 3 - 1)
        known = ((col >= 0) & (col < W) & (row >= 0) & (row < H))[:, None] & own[None, :]
        at = ((row - y) * W + col)[:, None] * C + c[None, :]
        value = tl.load(tokens + start + at, mask=known, other=0.0)
        factor = tl.load(weight + c * 9 + tap, mask=own, other=0.0).to(tl.float32)[None, :]
        total += tl.where(known, value.to(tl.float32) + added, 0.0) * factor
    below = 0.5 + 0.5 * tl.erf(total * 0.7071067811865476)
    known = (x < W)[:, None] & own[None, :]
    place = x[:, None] * C + c[None, :]
    tl.store(out + start + place, total * below, mask=known)
    if KEEP:
        tl.store(slope + start + place, below + total * tl.exp(-0.5 * total * total) * 0.3989422804014327, mask=known)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad, slope, tokens, maps_bias, weight, of_tokens, sums, H, W, C, lines,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tap = tl.arange(0, TAPS)
    own = c < C
    added = tl.load(maps_bias + c, mask=own, other=0.0).to(tl.float32)[None, :]
    of_weight = tl.zeros([TAPS, CHANNELS], tl.float32)
    of_bias = tl.zeros([CHANNELS], tl.float32)
    of_maps_bias = tl.zeros([CHANNELS], tl.float32)
    blocks = tl.cdiv(W, PIXELS)
    for number in range(tl.program_id(1), lines * blocks, tl.num_programs(1)):
        line, x = number // blocks, (number % blocks) * PIXELS + tl.arange(0, PIXELS)
        y, start = line % H, tl.cast(line, tl.int64) * W * C
        known = (x < W)[:, None] & own[None, :]
        place = x[:, None] * C + c[None, :]
        value = tl.load(tokens + start + place, mask=known, other=0.0).to(tl.float32)
        value = tl.where(known, value + added, 0.0)
        total = tl.zeros([PIXELS, CHANNELS], tl.float32)
        for k in tl.static_range(9):
            # The pixel was tap k of the one that lies the other way.
            row, col = x * 0 + y - (k // 3 - 1), x - (k % 3 - 1)
            there = ((col >= 0) & (col < W) & (row >= 0) & (row < H) & (x < W))[:, None] & own[None, :]
            at = ((row - y) * W + col)[:, None] * C + c[None, :]
            inner = tl.load(grad + start + at, mask=there, other=0.0).to(tl.float32)
            inner = inner * tl.load(slope + start + at, mask=there, other=0.0).to(tl.float32)
            total += inner * tl.load(weight + c * 9 + k, mask=own, other=0.0).to(tl.float32)[None, :]
            of_weight += tl.where((tap == k)[:, None], tl.sum(inner * value, 0)[None, :], 0.0)
            if k == 4:
                of_bias += tl.sum(inner, 0)
        tl.store(of_tokens + start + place, total, mask=known)
        of_maps_bias += tl.sum(total, 0)
    out = sums + tl.program_id(1) * 11 * C
    tl.store(out + tap[:, None] * C + c[None, :], of_weight, mask=(tap < 9)[:, None] & own[None, :])
    tl.store(out + 9 * C + c, of_bias, mask=own)
    tl.store(out + 10 * C + c, of_maps_bias, mask=own)


def _splits(images: int, height: int, width: int) -> int:
    return min(_SPLITS, images * height * -(-width // _PIXELS_BACKWARD))


def _fused_forward(tokens: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, images: int, height: int,
                   width: int, keep: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, slope = _shapes_forward(tokens, maps_bias, weight, bias, images, height, width, keep)
    channels = tokens.shape[1]
    grid = (-(-channels // _CHANNELS), -(-width // _PIXELS_FORWARD), images * height)
    _forward_kernel[grid](
        tokens, maps_bias, weight, bias, out, slope, height, width, channels,
        KEEP=keep, PIXELS=_PIXELS_FORWARD, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return out, slope


def _shapes_forward(tokens: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, images: int, height: int,
                    width: int, keep: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(tokens), torch.empty_like(tokens) if keep else tokens.new_empty(0)


def _fused_backward(grad: Tensor, slope: Tensor, tokens: Tensor, maps_bias: Tensor, weight: Tensor, images: int,
                    height: int, width: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_tokens, channels = torch.empty_like(tokens), tokens.shape[1]
    splits = _splits(images, height, width)
    sums = torch.empty(splits, 11, channels, device=tokens.device)
    _backward_kernel[(-(-channels // _CHANNELS), splits)](
        grad, slope, tokens, maps_bias, weight, of_tokens, sums, height, width, channels, images * height,
        PIXELS=_PIXELS_BACKWARD, CHANNELS=_CHANNELS, TAPS=16,
    )  # fmt: skip
    return of_tokens, sums


def _as_maps(tokens: Tensor, images: int, height: int, width: int) -> Tensor:
    return tokens.view(images, height, width, -1).permute(0, 3, 1, 2)


def _plain_forward(tokens: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, images: int, height: int,
                   width: int, keep: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    maps = _as_maps(tokens.to(weight.dtype) + maps_bias.to(weight.dtype), images, height, width)
    convolved = functional.conv2d(maps, weight.view(-1, 1, 3, 3), bias, padding=1, groups=len(weight))
    convolved = convolved.permute(0, 2, 3, 1).reshape(tokens.shape)
    out = functional.gelu(convolved).to(tokens.dtype)
    if not keep:
        return out, tokens.new_empty(0)
    return out, torch.ops.aten.gelu_backward(torch.ones_like(convolved), convolved).to(tokens.dtype)


def _plain_backward(grad: Tensor, slope: Tensor, tokens: Tensor, maps_bias: Tensor, weight: Tensor, images: int,
                    height: int, width: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    grid, channels = (images, height, width), len(weight)
    inner = grad.to(weight.dtype) * slope.to(weight.dtype)
    maps = _as_maps(tokens.to(weight.dtype) + maps_bias.to(weight.dtype), *grid)
    kernel = weight.view(-1, 1, 3, 3)
    of_maps, of_weight, of_bias = torch.ops.aten.convolution_backward(
        _as_maps(inner, *grid), maps, kernel, [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], channels,
        [True, True, True],
    )  # fmt: skip
    of_tokens = of_maps.permute(0, 2, 3, 1).reshape(tokens.shape)
    sums = torch.cat([of_weight.view(-1, 9).T, of_bias[None], of_tokens.sum(0)[None]])[None]
    return of_tokens.to(tokens.dtype), sums


_FLOPS_FORWARD, _FLOPS_SLOPE, _FLOPS_BACKWARD = 45, 8, 55
"""For each value: nine multiply-adds with the bias of their maps, and GELU; an exponential and what is added to it;
twice nine multiply-adds, nine products and ten sums."""

register(
    "depthwise_gelu(Tensor tokens, Tensor maps_bias, Tensor weight, Tensor bias, int images, int height, int width,"
    " bool keep) -> (Tensor, Tensor)",
    plain=_plain_forward,
    fused=_fused_forward,
    shapes=_shapes_forward,
    cost=lambda tokens, maps_bias, weight, bias, images, height, width, keep: Cost(
        (_FLOPS_FORWARD + _FLOPS_SLOPE * keep) * tokens.numel(),
        nbytes(tokens, maps_bias, weight, bias),
        (2 if keep else 1) * tokens.nbytes,
    ),
)
register(
    "depthwise_gelu_backward(Tensor grad, Tensor slope, Tensor tokens, Tensor maps_bias, Tensor weight, int images, "
    "int height, int width) -> (Tensor, Tensor)",
    plain=_plain_backward,
    fused=_fused_backward,
    shapes=lambda grad, slope, tokens, maps_bias, weight, *grid: (
        torch.empty_like(tokens),
        weight.new_empty(_splits(*grid), 11, tokens.shape[1]),
    ),
    cost=lambda grad, slope, tokens, maps_bias, weight, *grid: Cost(
        _FLOPS_BACKWARD * tokens.numel(),
        nbytes(grad, slope, tokens, maps_bias, weight),
        tokens.nbytes + 4 * _splits(*grid) * 11 * tokens.shape[1],
    ),
)


class _DepthwiseGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
        flat = weight.view(-1, 9)
        out, slope = torch.ops.segformer_spark.depthwise_gelu(tokens, maps_bias, flat, bias, *grid, True)
        ctx.save_for_backward(slope, tokens, maps_bias, flat)
        ctx.grid, ctx.shape = grid, weight.shape
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        slope, tokens, maps_bias, flat = ctx.saved_tensors
        of_tokens, parts = torch.ops.segformer_spark.depthwise_gelu_backward(
            grads[0].contiguous(), slope, tokens, maps_bias, flat, *ctx.grid
        )
        sums = parts.sum(0)
        of_weight = sums[:9].T.reshape(ctx.shape)
        return of_tokens, sums[10].to(maps_bias.dtype), of_weight, sums[9], None


DEPTHWISE = ("depthwise_gelu", "depthwise_gelu_backward")
"""The operations of `fused_depthwise_gelu`."""


def fused_depthwise_gelu(tokens: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """gelu(3 x 3 depthwise convolution of tokens + maps_bias), with zeros around the maps.

    Args:
        tokens: (N, C).
        maps_bias: (C,).
        weight: (C, 1, 3, 3), fp32.
        bias: (C,), fp32.
    """
    if not torch.is_grad_enabled():
        out: Tensor = torch.ops.segformer_spark.depthwise_gelu(
            tokens, maps_bias, weight.view(-1, 9), bias, *grid, False
        )[0]
        return out
    result: Tensor = _DepthwiseGelu.apply(tokens, maps_bias, weight, bias, grid)
    return result


def plain_depthwise_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """The same in plain torch, of maps that have their bias; weights in the maps' type."""
    convolved = functional.conv2d(_as_maps(tokens, *grid), weight, bias, padding=1, groups=len(weight))
    return functional.gelu(convolved.permute(0, 2, 3, 1).reshape(tokens.shape))
