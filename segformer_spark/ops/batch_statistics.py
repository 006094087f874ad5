"""Statistics of a batch over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Returns the elementwise sum of a tensor over all ranks."""


@dataclass(frozen=True)
class BatchStatistics:
    """Mean and biased variance (C,) of the values of all ranks, and their number per channel."""

    mean: Tensor
    variance: Tensor
    count: Tensor


def over_ranks(
    total: Tensor, squares: Tensor, count: Tensor | float, reduce: Reduce | None, dtype: torch.dtype
) -> BatchStatistics:
    """Statistics in `dtype` from this rank's sums (C,) in fp64, of values and of their squares: one collective.

    In fp64 the difference of the two loses nothing.
    """
    # A number is written by the device itself: copied there, the host would wait for it.
    own = count.to(total.dtype).view(1) if isinstance(count, Tensor) else total.new_full((1,), count)
    sums = torch.cat([total, squares, own])
    sums = sums if reduce is None else reduce(sums)
    total, squares = sums[:-1].chunk(2)
    mean = total / sums[-1]
    variance = (squares / sums[-1] - mean.square()).clamp_min(0)
    return BatchStatistics(mean.to(dtype), variance.to(dtype), sums[-1].to(dtype))
