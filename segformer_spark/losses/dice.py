"""Soft Dice loss over the global batch (Milletari et al. 2016, with |p| + |y| in the denominator)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segformer_spark.losses.base import TINY, SumLoss


class DiceLoss(SumLoss):
    """1 - weighted mean over classes of (2 sum p y + s) / (sum p + sum y + s).

    The sums run over all valid pixels of all ranks, so the loss does not depend on how a batch is divided. Classes
    without a pixel in the whole batch do not count.
    """

    def __init__(self, *, smooth: float = 1.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.smooth = smooth

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> (3, C) fp64: overlap, predicted and true pixels."""
        num_classes = logits.shape[1]
        valid = labels != self.ignore_index
        # One class per bin; ignored pixels fall into a bin of their own and drop out of every sum.
        bins = labels.where(valid, num_classes).flatten()
        probabilities = torch.softmax(logits, dim=1)
        truth = torch.bincount(bins, minlength=num_classes + 1)[:num_classes].double()
        own = probabilities.gather(1, labels.where(valid, 0)[:, None]).flatten().double()
        overlap = own.new_zeros(num_classes + 1).index_add(0, bins, own)[:num_classes]
        predicted = (probabilities * valid[:, None]).sum(-1).sum((0, 2), dtype=torch.float64)  # rows, then all
        return torch.stack([overlap, predicted, truth])

    def sums_shape(self, num_classes: int) -> tuple[int, ...]:
        return (3, num_classes)

    def value(self, sums: Tensor) -> Tensor:
        overlap, predicted, truth = sums.unbind(0)
        dice = (2 * overlap + self.smooth) / (predicted + truth + self.smooth)
        weights = (truth > 0).to(sums.dtype).detach()
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(sums.dtype)
        return (weights * (1 - dice)).sum() / weights.sum().clamp_min(TINY)
