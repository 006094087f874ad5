"""Sums over the global batch.

Losses here are ratios of sums over all pixels of all ranks. They take a `reduce` that sums a tensor over the ranks and
is differentiable; without one, this process holds the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def no_reduce(value: Tensor) -> Tensor:
    """The reduction of a single process."""
    return value
