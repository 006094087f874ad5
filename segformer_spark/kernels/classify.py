"""The end of the decode head in training: batch norm, ReLU, dropout and the classifier.

The map before it is the widest of the network. Its kernels read it once forward and twice backward, and write its
gradient once; what lies between is computed in registers, with the same random bits each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.philox import kept_by_dropout
from segformer_spark.kernels.registry import dot, dot_options, jit, register, tl
from segformer_spark.ops.batch_statistics import BatchStatistics, Reduce
from segformer_spark.ops.dropout import dropped_levels, keep_scale

_ROWS = 32
_SPLITS = 32
"""Programs, at most, that share the pixels of a block of columns when they are summed."""


@jit
def _kept(seed, rows, start, groups, dropped, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    group = start // 8 + tl.arange(0, COLUMNS // 8)
    number = rows[:, None] * groups + group[None, :]
    first, second, third, fourth = tl.randint4x(tl.load(seed), number)
    words = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth)).to(tl.uint32)
    return tl.interleave(words & 0xFFFF, words >> 16) >= dropped


@jit
def _active(  # type: ignore[no-untyped-def]
    values, first, rows, start, N, D, mean, scale, shift, seed, groups, dropped, keep_scale,
    DROPOUT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Centred values, the classifier's input, and where a gradient passes, of the tile's columns from `start` on."""
    cols = start + tl.arange(0, COLUMNS)
    known = (first + rows < N)[:, None] & (cols < D)[None, :]
    # 64 bits once, 32 within a tile
    value = tl.load(values + tl.cast(first, tl.int64) * D + rows[:, None] * D + cols[None, :], mask=known, other=0.0)
    value = value.to(tl.float32)
    centered = value - tl.load(mean + cols, mask=cols < D, other=0.0)[None, :]
    factor = tl.load(scale + cols, mask=cols < D, other=0.0)
    active = centered * factor[None, :] + tl.load(shift + cols, mask=cols < D, other=0.0)[None, :]
    passes = (active > 0.0) & known
    if DROPOUT:
        passes = passes & _kept(seed, first + rows, start, groups, dropped, COLUMNS)
    return centered, tl.where(passes, active * keep_scale, 0.0), passes, known, factor


@jit
def _gradient(grad, first, rows, c, N, C):  # type: ignore[no-untyped-def]
    known = (first + rows < N)[:, None] & (c < C)[None, :]
    return tl.load(grad + tl.cast(first, tl.int64) * C + rows[:, None] * C + c[None, :], mask=known, other=0.0)


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    values, mean, scale, shift, weight, bias, seed, logits, N, D, C, groups, dropped, keep_scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CLASSES: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    first, rows = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    c = tl.arange(0, CLASSES)
    total = tl.zeros([ROWS, CLASSES], tl.float32)
    for start in range(0, D, COLUMNS):
        cols = start + tl.arange(0, COLUMNS)
        _, active, _, _, _ = _active(
            values, first, rows, start, N, D, mean, scale, shift, seed, groups, dropped, keep_scale, DROPOUT, COLUMNS
        )
        own = (cols < D)[:, None] & (c < C)[None, :]
        projection = tl.load(weight + c[None, :] * D + cols[:, None], mask=own, other=0.0)
        total = dot(active.to(projection.dtype), projection, total, PRECISION, WIDEN)
    total += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    known = (first + rows < N)[:, None] & (c < C)[None, :]
    tl.store(logits + tl.cast(first, tl.int64) * C + rows[:, None] * C + c[None, :], total, mask=known)


@jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    grad, values, mean, scale, shift, weight, seed, sums, of_weight, N, D, C, groups, dropped, keep_scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CLASSES: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    start, split = tl.program_id(0) * COLUMNS, tl.program_id(1)
    cols, c = start + tl.arange(0, COLUMNS), tl.arange(0, CLASSES)
    own = (c < C)[:, None] & (cols < D)[None, :]
    projection = tl.load(weight + c[:, None] * D + cols[None, :], mask=own, other=0.0)
    of_inner = tl.zeros([COLUMNS], tl.float32)
    of_product = tl.zeros([COLUMNS], tl.float32)
    total = tl.zeros([CLASSES, COLUMNS], tl.float32)
    for tile in range(split, tl.cdiv(N, ROWS), tl.num_programs(1)):
        first, rows = tile * ROWS, tl.arange(0, ROWS)
        centered, active, passes, _, _ = _active(
            values, first, rows, start, N, D, mean, scale, shift, seed, groups, dropped, keep_scale, DROPOUT, COLUMNS
        )
        of_logits = _gradient(grad, first, rows, c, N, C)
        inner = dot(of_logits, projection, tl.zeros([ROWS, COLUMNS], tl.float32), PRECISION, WIDEN) * keep_scale
        inner = tl.where(passes, inner, 0.0)
        of_inner += tl.sum(inner, 0)
        of_product += tl.sum(inner * centered, 0)
        total = dot(tl.trans(of_logits), active.to(of_logits.dtype), total, PRECISION, WIDEN)
    place = sums + split * 2 * D + cols
    tl.store(place, of_inner, mask=cols < D)
    tl.store(place + D, of_product, mask=cols < D)
    tl.store(of_weight + (split * C + c[:, None]) * D + cols[None, :], total, mask=own)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad, values, mean, scale, shift, weight, seed, mean_grad, slope, out, N, D, C, groups, dropped, keep_scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CLASSES: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * COLUMNS
    first, rows = tl.program_id(1) * ROWS, tl.arange(0, ROWS)
    cols, c = start + tl.arange(0, COLUMNS), tl.arange(0, CLASSES)
    own = (c < C)[:, None] & (cols < D)[None, :]
    projection = tl.load(weight + c[:, None] * D + cols[None, :], mask=own, other=0.0)
    centered, _, passes, known, factor = _active(
        values, first, rows, start, N, D, mean, scale, shift, seed, groups, dropped, keep_scale, DROPOUT, COLUMNS
    )
    of_logits = _gradient(grad, first, rows, c, N, C)
    inner = dot(of_logits, projection, tl.zeros([ROWS, COLUMNS], tl.float32), PRECISION, WIDEN) * keep_scale
    inner = tl.where(passes, inner, 0.0) - tl.load(mean_grad + cols, mask=cols < D, other=0.0)[None, :]
    inner -= centered * tl.load(slope + cols, mask=cols < D, other=0.0)[None, :]
    place = tl.cast(first, tl.int64) * D + rows[:, None] * D + cols[None, :]
    tl.store(out + place, inner * factor[None, :], mask=known)


def _splits(values: Tensor) -> int:
    return min(_SPLITS, -(-len(values) // _ROWS))


def _columns(classes: int) -> int:
    return 64 if classes <= 32 else 32


def _options(values: Tensor, classes: int, dropped: int) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of all kernels after their tensors, and their constants."""
    pixels, channels = values.shape
    block = max(16, 1 << (classes - 1).bit_length())
    return (
        [pixels, channels, classes, -(-channels // 8), dropped, keep_scale(dropped)],
        {
            "DROPOUT": dropped > 0,
            "ROWS": _ROWS,
            "COLUMNS": _columns(classes),
            "CLASSES": block,
            **dot_options(values.dtype),
            "num_warps": 4 if block <= 32 else 8,
        },
    )


def _fused_forward(values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor,
                   seed: Tensor, dropped: int) -> Tensor:  # fmt: skip
    numbers, constants = _options(values, len(weight), dropped)
    logits = values.new_empty(len(values), len(weight))
    grid = (-(-len(values) // constants["ROWS"]),)
    _forward_kernel[grid](values, mean, scale, shift, weight, bias, seed, logits, *numbers, **constants)
    return logits


def _fused_sums(grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
                seed: Tensor, dropped: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    numbers, constants = _options(values, len(weight), dropped)
    channels = values.shape[1]
    splits = _splits(values)
    sums = torch.empty(splits, 2, channels, device=values.device)
    of_weight = torch.empty(splits, *weight.shape, device=values.device)
    grid = (-(-channels // constants["COLUMNS"]), splits)
    _sums_kernel[grid](grad, values, mean, scale, shift, weight, seed, sums, of_weight, *numbers, **constants)
    return sums, of_weight


def _fused_backward(grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
                    seed: Tensor, mean_grad: Tensor, slope: Tensor, dropped: int) -> Tensor:  # fmt: skip
    numbers, constants = _options(values, len(weight), dropped)
    out = torch.empty_like(values)
    grid = (-(-values.shape[1] // constants["COLUMNS"]), -(-len(values) // constants["ROWS"]))
    _backward_kernel[grid](grad, values, mean, scale, shift, weight, seed, mean_grad, slope, out, *numbers, **constants)
    return out


def _plain_active(values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, seed: Tensor, dropped: int,
                  ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    centered = values.to(mean.dtype) - mean
    active = torch.addcmul(shift, centered, scale)
    passes = active > 0
    if dropped:
        passes &= kept_by_dropout(seed, len(values), values.shape[1], dropped)
    return centered, torch.where(passes, active * keep_scale(dropped), 0), passes


def _plain_inner(grad: Tensor, weight: Tensor, passes: Tensor, dropped: int, dtype: torch.dtype) -> Tensor:
    inner = grad.to(dtype) @ weight.to(dtype) * keep_scale(dropped)
    return torch.where(passes, inner, 0)


def _plain_forward(values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor,
                   seed: Tensor, dropped: int) -> Tensor:  # fmt: skip
    active = _plain_active(values, mean, scale, shift, seed, dropped)[1].to(values.dtype)
    return functional.linear(active, weight, bias.to(values.dtype))


def _plain_sums(grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
                seed: Tensor, dropped: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    centered, active, passes = _plain_active(values, mean, scale, shift, seed, dropped)
    inner = _plain_inner(grad, weight, passes, dropped, mean.dtype)
    of_weight = grad.T.to(mean.dtype) @ active.to(values.dtype).to(mean.dtype)
    return torch.stack([inner.sum(0), (inner * centered).sum(0)])[None], of_weight[None]


def _plain_backward(grad: Tensor, values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
                    seed: Tensor, mean_grad: Tensor, slope: Tensor, dropped: int) -> Tensor:  # fmt: skip
    centered, _, passes = _plain_active(values, mean, scale, shift, seed, dropped)
    inner = _plain_inner(grad, weight, passes, dropped, mean.dtype)
    return ((inner - mean_grad - centered * slope) * scale).to(values.dtype)


def _cost(values: Tensor, weight: Tensor, products: int, read: float, written: float) -> Cost:
    return Cost(2.0 * products * values.numel() * len(weight), read, written, product=values.dtype)


_SHARED = "Tensor values, Tensor mean, Tensor scale, Tensor shift, Tensor weight"

register(
    f"classify({_SHARED}, Tensor bias, Tensor seed, int dropped) -> Tensor",
    plain=_plain_forward,
    fused=_fused_forward,
    shapes=lambda values, mean, scale, shift, weight, *_: values.new_empty(len(values), len(weight)),
    cost=lambda values, mean, scale, shift, weight, *rest: _cost(
        values,
        weight,
        1,
        nbytes(values, mean, scale, shift, weight, *rest),
        len(values) * len(weight) * values.itemsize,
    ),
    multiplies=True,
)
register(
    f"classify_sums(Tensor grad, {_SHARED}, Tensor seed, int dropped) -> (Tensor, Tensor)",
    plain=_plain_sums,
    fused=_fused_sums,
    shapes=lambda grad, values, mean, scale, shift, weight, *_: (
        mean.new_empty(_splits(values), 2, values.shape[1]),
        mean.new_empty(_splits(values), *weight.shape),
    ),
    cost=lambda grad, values, mean, scale, shift, weight, *rest: _cost(
        values,
        weight,
        2,
        nbytes(grad, values, mean, scale, shift, weight, *rest),
        4.0 * _splits(values) * values.shape[1] * (2 + len(weight)),
    ),
    multiplies=True,
)
register(
    f"classify_backward(Tensor grad, {_SHARED}, Tensor seed, Tensor mean_grad, Tensor slope, int dropped) -> Tensor",
    plain=_plain_backward,
    fused=_fused_backward,
    shapes=lambda grad, values, *_: torch.empty_like(values),
    cost=lambda grad, values, mean, scale, shift, weight, *rest: _cost(
        values, weight, 1, nbytes(grad, values, mean, scale, shift, weight, *rest), values.nbytes
    ),
    multiplies=True,
)


class _Classify(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        dropout: float,
        reduce: Reduce | None,
    ) -> Tensor:
        dropped = dropped_levels(dropout)
        seed = torch.randint(2**62, (1,), device=values.device) if dropped else count.new_zeros(1, dtype=torch.int64)
        inverse_std = torch.rsqrt(variance + eps)
        scale, projection = norm_weight * inverse_std, weight.to(values.dtype)
        logits: Tensor = torch.ops.segformer_spark.classify(
            values, mean, scale, norm_bias, projection, bias, seed, dropped
        )
        ctx.save_for_backward(values, mean, scale, norm_bias, projection, seed, inverse_std, count)
        ctx.dropped, ctx.reduce, ctx.dtype = dropped, reduce, weight.dtype
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *shared, seed, inverse_std, count = ctx.saved_tensors
        grad = grads[0].contiguous()
        sums, of_weight = torch.ops.segformer_spark.classify_sums(grad, *shared, seed, ctx.dropped)
        own = sums.sum(0)
        total = own if ctx.reduce is None else ctx.reduce(own)
        mean_grad, slope = total[0] / count, total[1] * inverse_std.square() / count
        of_values = torch.ops.segformer_spark.classify_backward(grad, *shared, seed, mean_grad, slope, ctx.dropped)
        of_bias = grad.sum(0, dtype=ctx.dtype)
        return of_values, own[1] * inverse_std, own[0], of_weight.sum(0).to(ctx.dtype), of_bias, *[None] * 6


CLASSIFY = ("classify", "classify_sums", "classify_backward")
"""The operations of `fused_classify`."""


def fused_classify(
    values: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: BatchStatistics,
    *,
    eps: float,
    dropout: float,
    reduce: Reduce | None,
) -> Tensor:
    """`classify_plain.classify` with kernels, for values whose statistics are known: logits (N, C).

    Dropout's probability is rounded to 1 / 65536, and what is kept is scaled to match.
    """
    known = (statistics.mean, statistics.variance, statistics.count)
    logits: Tensor = _Classify.apply(values, norm_weight, norm_bias, weight, bias, *known, eps, dropout, reduce)
    return logits
