"""Statistics of a batch over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Returns the elementwise sum of a tensor over all ranks."""


@dataclass(frozen=True)
class BatchStatistics:
    """Mean and biased variance (C,) of the values of all ranks, and their number per channel."""

    mean: Tensor
    variance: Tensor
    count: Tensor
