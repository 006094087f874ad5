"""The end of the decode head in training in plain torch: batch norm, ReLU, dropout and the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.ops.batch_statistics import BatchStatistics, Reduce, over_ranks

_ROWS = 128


class _Classify(torch.autograd.Function):
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
        mean, variance = statistics.mean, statistics.variance
        active = functional.batch_norm(values, mean, variance, norm_weight, norm_bias, False, 0.0, eps).relu_()
        if dropout:
            active = torch.native_dropout(active, dropout, True)[0]
        ctx.save_for_backward(values, active, norm_weight, weight, mean, variance, statistics.count)
        ctx.eps, ctx.reduce, ctx.keep_scale = eps, reduce, 1 / (1 - dropout)
        ctx.mark_non_differentiable(mean, variance, statistics.count)
        logits = functional.linear(active, weight.to(active.dtype), bias.to(active.dtype))
        return logits, mean, variance, statistics.count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        values, active, norm_weight, weight, mean, variance, count = ctx.saved_tensors
        grad: Tensor = grads[0]
        of_weight = grad.T @ active
        projection = (weight * ctx.keep_scale).to(grad.dtype)
        # What dropout or ReLU left out is 0 in what is kept.
        inner = torch.ops.aten.threshold_backward(grad @ projection, active, 0)
        inverse_std = torch.rsqrt(variance + ctx.eps)
        statistics = (norm_weight, mean, variance, mean, inverse_std)
        if ctx.reduce is None:
            of_values, of_norm, of_norm_bias = torch.ops.aten.native_batch_norm_backward(
                inner, values, *statistics, True, ctx.eps, [True, True, True]
            )
        else:
            _, of_norm, of_norm_bias = torch.ops.aten.native_batch_norm_backward(
                inner, values, *statistics, False, ctx.eps, [False, True, True]
            )
            of_values = _across_ranks(ctx.reduce, inner, values, of_norm, of_norm_bias, inverse_std, mean, count)
            of_values = _affine(of_values, norm_weight * inverse_std, torch.zeros_like(mean))
        of_bias = grad.sum(0, dtype=weight.dtype)
        return of_values, of_norm, of_norm_bias, of_weight.to(weight.dtype), of_bias, None, None, None


def _across_ranks(
    reduce: Reduce,
    inner: Tensor,
    values: Tensor,
    of_norm: Tensor,
    of_norm_bias: Tensor,
    inverse_std: Tensor,
    mean: Tensor,
    count: Tensor,
) -> Tensor:
    """inner - mean(inner) - normalised * mean(inner * normalised), with means over all ranks."""
    mean_grad, mean_product = (reduce(torch.stack([of_norm_bias, of_norm])) / count).unbind(0)
    slope = mean_product * inverse_std
    return inner - _affine(values, slope, mean_grad - slope * mean)


def _affine(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """values * scale + shift per channel, computed in fp32 and stored in the type of `values`."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return functional.batch_norm(values, zeros, ones, scale, shift, False, 0.0, 0.0)


def plain_classify(
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

    Args:
        values: (N, D), all pixels of the batch.
        norm_weight, norm_bias: (D,), fp32.
        weight, bias: the classifier's, (C, D) and (C,).
        eps: of the batch norm.
        dropout: probability of each value to be left out.
        reduce: sum over ranks, one in each direction; None for this process alone.

    Returns:
        Logits (N, C), in the type of `values`.
    """
    logits, mean, variance, count = _Classify.apply(values, norm_weight, norm_bias, weight, bias, eps, dropout, reduce)
    return logits, BatchStatistics(mean, variance, count)


def batch_statistics(values: Tensor, reduce: Reduce | None) -> BatchStatistics:
    """Statistics of (N, D) over N and all ranks, in one collective; at least fp32.

    Ranks add up sums and squares in fp64, where the difference of the two loses nothing.
    """
    count = len(values)
    if values.dtype in (torch.bfloat16, torch.float16):
        total = _column_sums(values, lambda part: part.sum(1, dtype=torch.float32))
        squares = _column_sums(
            values, lambda part: torch.linalg.vector_norm(part, 2, 1, dtype=torch.float32).double().square()
        )
    else:
        variance, mean = torch.var_mean(values, 0, correction=0)
        total = mean.double() * count
        squares = (variance.double() + mean.double().square()) * count
    return over_ranks(total, squares, count, reduce, torch.promote_types(values.dtype, torch.float32))


def statistics_of_sums(sums: Tensor, count: int, reduce: Reduce | None) -> BatchStatistics:
    """Statistics from sums of values and of squares over parts of `count` pixels, (T, 2, D)."""
    total, squares = sums.sum(0, dtype=torch.float64).unbind()
    return over_ranks(total, squares, count, reduce, sums.dtype)


def _column_sums(values: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums of (N, D) over N in fp64, of sums in fp32 of `_ROWS` rows each."""
    whole = len(values) // _ROWS * _ROWS
    parts = [values[:whole].view(-1, _ROWS, values.shape[1]), values[None, whole:]]
    return torch.cat([of(part) for part in parts if part.numel()]).sum(0, dtype=torch.float64)
