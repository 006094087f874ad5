"""What the losses share: class weights, ignored pixels, and sums over the global batch.

Losses here are ratios of sums over all pixels of all ranks. They take a `reduce` that sums a tensor over the ranks and
is differentiable; without one, this process holds the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY = torch.finfo(torch.float32).tiny
"""A divisor whose inverse is finite in the arithmetic of the gradient."""

Reduce = Callable[[Tensor], Tensor]


def no_reduce(value: Tensor) -> Tensor:
    """The reduction of a single process."""
    return value


def pixel_sum(values: Tensor) -> Tensor:
    """The sum of (..., H, W) in fp64: each row in its own arithmetic, then all rows.

    An fp32 sum of probabilities stops growing at 2^24 and depends on how a batch is divided long before.
    """
    return values.sum(-1).sum(dtype=torch.float64)


class GlobalBatchLoss(nn.Module):
    """Base of the losses. Sums over pixels, and with them the loss, are fp64; `build.WeightedSum` rounds.

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

    def true_class(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which pixels are labelled, their class (0 elsewhere) and its log-probability, each (B, H, W)."""
        valid = labels != self.ignore_index
        target = labels.where(valid, torch.zeros_like(labels))
        return valid, target, functional.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)

    def weighted(self, value: Tensor, target: Tensor) -> Tensor:
        """`value` (B, H, W) times the weight of each pixel's class."""
        return value if self.class_weights is None else value * self.class_weights.to(value.dtype)[target]

    def divide(self, total: Tensor, weight: Tensor) -> Tensor:
        """The quotient of two sums (`pixel_sum`) over all ranks; 0 where there is nothing to divide by."""
        return quotient(self.reduce(torch.stack([total, weight])))


def quotient(sums: Tensor) -> Tensor:
    """The first of two numbers over the second, which has no gradient; 0 where there is nothing to divide by."""
    return sums[0] / sums[1].detach().clamp_min(TINY)


class SumLoss(GlobalBatchLoss):
    """A loss that is a function of sums over pixels, so that pixels may come a part at a time."""

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What a set of pixels contributes; the sums of a batch are those of its parts added up."""
        raise NotImplementedError

    def sums_shape(self, num_classes: int) -> tuple[int, ...]:
        """The shape of `sums` for logits of so many classes."""
        return (2,)

    def value(self, sums: Tensor) -> Tensor:
        """The loss from the sums over all ranks."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        return self.value(self.reduce(self.sums(logits, labels)))
