"""What the losses share: class weights, ignored pixels, and sums over the global batch.

Losses here are ratios of sums over all pixels of all ranks. They take a `reduce` that sums a tensor over the ranks and
is differentiable; without one, this process holds the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]


def no_reduce(value: Tensor) -> Tensor:
    """The reduction of a single process."""
    return value


class GlobalBatchLoss(nn.Module):
    """Base of the losses.

    Args:
        class_weights: float (C,), or None for equal weights.
        ignore_index: label of pixels that have no say.
        reduce: differentiable sum over ranks.
    """

    class_weights: Tensor | None

    def __init__(
        self, *, class_weights: Tensor | None = None, ignore_index: int = 255, reduce: Reduce = no_reduce
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_index, self.reduce = ignore_index, reduce
