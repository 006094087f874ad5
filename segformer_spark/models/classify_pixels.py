"""The end of the decode head in one pass: batch norm, ReLU, dropout and the classifier, a chunk of pixels at a time.

The map before it is the widest of the network (768 channels at a quarter of the size). One layer after the other reads
and writes it five times and keeps four copies for the backward pass; here a chunk stays in the processor's cache, and
the map itself and one byte per value are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from segformer_spark.ops.batch_statistics import BatchStatistics, Reduce, over_ranks
from segformer_spark.ops.dropout import LEVELS, dropped_levels, keep_scale

_CACHED_VALUES = 400_000
"""Values of a chunk on a CPU: 1.6 MB in fp32, about a core's second-level cache. A GPU takes all pixels at once."""


class _ClassifyPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        dropout: float,
        reduce: Reduce | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        statistics = batch_statistics(values, reduce)
        inverse_std = torch.rsqrt(statistics.variance + eps)
        scale, shift = norm_weight * inverse_std, norm_bias.to(inverse_std.dtype)
        dropped = dropped_levels(dropout)
        factor = keep_scale(dropped)
        projection = (weight * factor).to(values.dtype)
        logits = values.new_empty(len(values), len(weight))
        kept = torch.empty_like(values, dtype=torch.bool) if dropped else None
        for rows in _chunks(values):
            if kept is not None:
                _draw(kept[rows], dropped)
            active = _activation(values[rows], statistics.mean, scale, shift, None if kept is None else kept[rows])
            torch.addmm(bias.to(values.dtype), active.to(values.dtype), projection.T, out=logits[rows])
        statistic = (statistics.mean, inverse_std, statistics.count)
        ctx.save_for_backward(values, norm_weight, norm_bias, weight, kept, *statistic)
        ctx.keep_scale, ctx.reduce = factor, reduce
        ctx.mark_non_differentiable(statistics.mean, statistics.variance, statistics.count)
        return logits, statistics.mean, statistics.variance, statistics.count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        values, norm_weight, norm_bias, weight, all_kept, mean, inverse_std, count = ctx.saved_tensors
        grad: Tensor = grads[0].contiguous()
        wide = mean.dtype
        scale, shift = norm_weight * inverse_std, norm_bias.to(wide)
        projection = (weight * ctx.keep_scale).to(grad.dtype)

        def of_norm(rows: slice) -> tuple[Tensor, Tensor]:
            active = _activation(values[rows], mean, scale, shift, None if all_kept is None else all_kept[rows])
            return active, torch.ops.aten.threshold_backward((grad[rows] @ projection).to(wide), active, 0)

        grad_projection = torch.zeros_like(weight, dtype=wide)
        sums = mean.new_zeros(2, len(mean))
        for rows in _chunks(values):
            active, inner = of_norm(rows)
            grad_projection += grad[rows].T @ active.to(grad.dtype)
            sums[0] += inner.sum(0)
            sums[1] += (inner * (values[rows].to(wide) - mean)).sum(0)
        grad_norm_bias, grad_norm_weight = sums[0].clone(), sums[1] * inverse_std
        totals = sums if ctx.reduce is None else ctx.reduce(sums)
        mean_grad, slope = totals[0] / count, totals[1] * inverse_std.square() / count
        # Into the memory of the values: a second map of this size would be the highest point of the whole step.
        for rows in _chunks(values):
            centered = values[rows].to(wide) - mean
            values[rows] = torch.addcmul(of_norm(rows)[1] - mean_grad, centered, slope, value=-1).mul_(scale)
        return (
            values,
            grad_norm_weight.to(norm_weight.dtype),
            grad_norm_bias.to(norm_bias.dtype),
            (grad_projection * ctx.keep_scale).to(weight.dtype),
            grad.sum(0, dtype=wide).to(weight.dtype),
            None,
            None,
            None,
        )


def classify_pixels(
    values: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dropout: float,
    reduce: Reduce | None,
) -> tuple[Tensor, BatchStatistics]:
    """classifier(dropout(relu(batch_norm(values)))) in training mode, with the statistics it used.

    Dropout's probability is rounded to 1 / 65536, and what is kept is scaled to match.

    Args:
        values: (N, D) contiguous, all pixels of the batch. The backward pass overwrites them with their gradient; a
            second one is refused by autograd.
        norm_weight, norm_bias: (D,).
        weight, bias: the classifier's, (C, D) and (C,).
        eps: of the batch norm.
        dropout: probability of each value to be left out.
        reduce: sum over ranks; None for this process alone.

    Returns:
        Logits (N, C), in the type of `values`.
    """
    logits, mean, variance, count = _ClassifyPixels.apply(
        values, norm_weight, norm_bias, weight, bias, eps, dropout, reduce
    )
    return logits, BatchStatistics(mean, variance, count)


def batch_statistics(values: Tensor, reduce: Reduce | None) -> BatchStatistics:
    """Statistics of (N, D) over N and all ranks, in two passes and one collective; in fp32 at least."""
    count = torch.full_like(values[:1, 0], len(values), dtype=torch.promote_types(values.dtype, torch.float32))[0]
    mean = _summed(values, lambda chunk: chunk) / count
    squares = _summed(values, lambda chunk: (chunk - mean).square_())
    if reduce is None:
        return BatchStatistics(mean, squares / count, count)
    own = mean.double()
    return over_ranks(own * count, squares.double() + own.square() * count, count, reduce, mean.dtype)


def _summed(values: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    # Sums of sums lose fewer digits than one long sum.
    return torch.stack([of(_wide(values[rows])).sum(0) for rows in _chunks(values)]).sum(0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _activation(values: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, kept: Tensor | None) -> Tensor:
    """relu(batch_norm(values)), without what dropout leaves out."""
    active = torch.addcmul(shift, values - mean, scale).relu_()
    return active if kept is None else active.mul_(kept.to(active.dtype))


def _draw(kept: Tensor, dropped: int) -> None:
    """Fill with independent truths of probability 1 - dropped / 65536: four of them from each random word."""
    words = torch.empty(-(-kept.numel() // 4), dtype=torch.int64, device=kept.device).random_(-(2**63), None)
    levels = words.view(torch.int16)[: kept.numel()].view(kept.shape)
    torch.ge(levels, dropped - LEVELS // 2, out=kept)


def _chunks(values: Tensor) -> Iterator[slice]:
    size = max(1, _CACHED_VALUES // values.shape[1] if values.device.type == "cpu" else len(values))
    return (slice(start, start + size) for start in range(0, len(values), size))
