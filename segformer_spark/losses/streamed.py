"""Sums over the pixels of enlarged logits, without the enlarged logits.

At 150 classes full-size logits, their softmax and their gradient are most of a training step's memory. Here a band of
rows is enlarged, summed and forgotten, and enlarged once more in the backward pass: exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from segformer_spark.ops.interpolation import bands, enlarge_rows, source_rows

Sums = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C, H, W) and labels (B, H, W) int64 -> fp64 sums over all pixels, of any one shape."""

_CACHED_VALUES = 1_500_000
"""Logits of a band on a CPU: 6 MB in fp32 stay in its last cache. A GPU wants more work at a time."""

_GPU_VALUES = 64_000_000
_MIN_ROWS = 8


class _StreamedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coarse: Tensor, labels: Tensor, sums: Sums) -> Tensor:
        ctx.save_for_backward(coarse, labels)
        ctx.sums, size, length = sums, _size(labels), coarse.shape[-2]
        parts = []
        for rows, needed in _bands(coarse, labels):
            parts.append(sums(enlarge_rows(coarse[..., needed, :], length, rows, size), labels[:, rows].long()))
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        coarse, labels = ctx.saved_tensors
        size, length = _size(labels), coarse.shape[-2]
        result = torch.zeros_like(coarse)
        for rows, needed in _bands(coarse, labels):
            with torch.enable_grad():
                source = coarse[..., needed, :].detach().requires_grad_()
                part = ctx.sums(enlarge_rows(source, length, rows, size), labels[:, rows].long())
            result[..., needed, :] += torch.autograd.grad(part, source, grads[0])[0]
        return result, None, None


def streamed_sums(coarse: Tensor, labels: Tensor, sums: Sums) -> Tensor:
    """sums(bilinear(coarse), labels), differentiable with respect to `coarse`.

    Args:
        coarse: logits (B, C, h, w) in the arithmetic of the loss; the sums are fp64.
        labels: (B, H, W) of any integer type.
    """
    result: Tensor = _StreamedSums.apply(coarse, labels, sums)
    return result


def _size(labels: Tensor) -> tuple[int, int]:
    return labels.shape[-2], labels.shape[-1]


def _bands(coarse: Tensor, labels: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of the labels, with the rows of the logits that they need."""
    length, (size, width) = coarse.shape[-2], _size(labels)
    values = _CACHED_VALUES if coarse.device.type == "cpu" else _GPU_VALUES
    height = max(_MIN_ROWS, values // (coarse.shape[0] * coarse.shape[1] * width))
    return ((rows, source_rows(length, size, rows.start, rows.stop)) for rows in bands(size, height))
