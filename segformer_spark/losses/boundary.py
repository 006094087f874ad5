"""Cross-entropy with more weight along class boundaries (after Ronneberger et al. 2015, equation 2).

U-Net weights pixels by their distance to the nearest cells; here a band of constant width and weight takes the place of
the two Gaussians, which needs no distance transform on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.losses.base import GlobalBatchLoss, pixel_sum


class BoundaryCrossEntropyLoss(GlobalBatchLoss):
    """Mean cross-entropy in which a pixel weighs 1 + `weight` when another class lies within `radius`.

    The radius is in pixels along rows and columns (Chebyshev distance); ignored pixels make no boundary.
    """

    def __init__(self, *, radius: int = 3, weight: float = 4.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.radius, self.weight = radius, weight

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        valid, target, log_p = self.true_class(logits, labels)
        weight = (1 + self.weight * near_boundary(labels, self.radius, self.ignore_index)) * valid
        weight = self.weighted(weight.to(log_p.dtype), target)
        return self.divide(-pixel_sum(weight * log_p), pixel_sum(weight))


def near_boundary(labels: Tensor, radius: int, ignore_index: int) -> Tensor:
    """Which pixels (B, H, W) have two different labels in the square of 2 radius + 1 around them."""
    valid = labels != ignore_index
    values = labels.to(torch.float32)[:, None]
    size = 2 * radius + 1
    lowest = values.where(valid[:, None], torch.inf)
    highest = values.where(valid[:, None], -torch.inf)
    top = functional.max_pool2d(highest, size, stride=1, padding=radius)
    bottom = -functional.max_pool2d(-lowest, size, stride=1, padding=radius)
    return valid & (top > bottom).squeeze(1)
