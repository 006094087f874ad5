"""Pixel-wise cross-entropy and focal loss, normalised over the global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.losses.base import SumLoss, pixel_sum, quotient


class CrossEntropyLoss(SumLoss):
    """Mean cross-entropy over the valid pixels of all ranks.

    As torch.nn.functional.cross_entropy with reduction "mean" on the whole batch, weights and label smoothing included:
    the sum is divided by the summed class weights of the valid pixels. Without a valid pixel it is 0.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.label_smoothing = label_smoothing

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> (2,): weighted losses, and weights."""
        losses = functional.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return torch.stack([pixel_sum(losses), pixel_weight(labels, self.class_weights, self.ignore_index)])

    def value(self, sums: Tensor) -> Tensor:
        return quotient(sums)


class FocalLoss(SumLoss):
    """Focal loss -w_y (1 - p_y)^gamma log p_y, normalised as CrossEntropyLoss (Lin et al. 2017, equation 5)."""

    def __init__(self, *, gamma: float = 2.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.gamma = gamma

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> (2,): weighted losses, and weights."""
        valid, target, log_p = self.true_class(logits, labels)
        # 1 - exp(log p) without cancellation where p is close to 1.
        miss = -torch.expm1(log_p)
        # The gradient of 0^gamma is infinite for gamma < 1.
        modulation = miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma if self.gamma else torch.ones_like(miss)
        value = self.weighted(-modulation * log_p, target)
        total = pixel_sum(value * valid)
        return torch.stack([total, pixel_weight(labels, self.class_weights, self.ignore_index)])

    def value(self, sums: Tensor) -> Tensor:
        return quotient(sums)


def pixel_weight(labels: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor:
    """Summed class weight of the valid pixels of labels (B, H, W), a scalar fp64."""
    valid = labels != ignore_index
    if class_weights is None:
        return valid.sum().double()
    return pixel_sum(class_weights[labels.where(valid, 0)] * valid)
