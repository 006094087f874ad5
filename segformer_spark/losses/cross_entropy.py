"""Pixel-wise cross-entropy and focal loss, normalised over the global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.losses.base import GlobalBatchLoss, Reduce


class CrossEntropyLoss(GlobalBatchLoss):
    """Mean cross-entropy over the valid pixels of all ranks.

    As torch.nn.functional.cross_entropy with reduction "mean" on the whole batch, weights and label smoothing included:
    the sum is divided by the summed class weights of the valid pixels. Without a valid pixel it is 0.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        total = functional.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            reduction="none",  # "sum" has no deterministic version on GPUs
            label_smoothing=self.label_smoothing,
        ).sum()
        return divide(total, pixel_weight(labels, self.class_weights, self.ignore_index, logits), self.reduce)


class FocalLoss(GlobalBatchLoss):
    """Focal loss -w_y (1 - p_y)^gamma log p_y, normalised as CrossEntropyLoss (Lin et al. 2017, equation 5)."""

    def __init__(self, *, gamma: float = 2.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        valid = labels != self.ignore_index
        target = labels.where(valid, torch.zeros_like(labels))
        log_p = functional.log_softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
        # 1 - exp(log p) without cancellation where p is close to 1.
        miss = -torch.expm1(log_p)
        # The gradient of 0^gamma is infinite for gamma < 1.
        modulation = miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma if self.gamma else torch.ones_like(miss)
        value = -modulation * log_p
        if self.class_weights is not None:
            value = value * self.class_weights.to(value.dtype)[target]
        total = (value * valid).sum()
        return divide(total, pixel_weight(labels, self.class_weights, self.ignore_index, logits), self.reduce)


def pixel_weight(labels: Tensor, class_weights: Tensor | None, ignore_index: int, like: Tensor) -> Tensor:
    """Summed class weight of the valid pixels, a scalar of `like`'s dtype."""
    valid = labels != ignore_index
    if class_weights is None:
        return valid.sum().to(like.dtype)
    return class_weights.to(like.dtype)[labels[valid]].sum()


def divide(total: Tensor, weight: Tensor, reduce: Reduce) -> Tensor:
    """The quotient of two sums over all ranks; 0 where there is nothing to divide by."""
    sums = reduce(torch.stack([total, weight]))
    return sums[0] / sums[1].detach().clamp_min(torch.finfo(sums.dtype).tiny)
