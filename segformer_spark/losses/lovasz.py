"""Lovász-Softmax: the convex surrogate of the Jaccard index (Berman et al. 2018, sections 3 and 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from segformer_spark.losses.base import GlobalBatchLoss


class LovaszSoftmaxLoss(GlobalBatchLoss):
    """Mean over images of the class-weighted mean of the Lovász extension of the Jaccard loss.

    Taken per image over the classes present in it (the paper's "image" and "classes present"): a surrogate over a
    batch would change with the way the batch is divided among ranks. Images without a labelled pixel do not count.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        probabilities = torch.softmax(logits, dim=1)
        values, counted = [], []
        for image, truth in zip(probabilities, labels, strict=True):
            valid = truth != self.ignore_index
            values.append(self._image_loss(image[:, valid], truth[valid]))
            counted.append(valid.any())
        return self.divide(torch.stack(values).sum(), torch.stack(counted).sum().double())

    def _image_loss(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """Probabilities (C, P) and labels (P,) -> scalar."""
        present = torch.unique(truth)
        if len(present) == 0:
            return probabilities.sum(dtype=torch.float64) * 0
        losses = torch.stack([self._class_loss(probabilities[c], truth == c) for c in present])
        if self.class_weights is None:
            return losses.mean()
        weights = self.class_weights.to(losses.dtype)[present]
        return (weights * losses).sum() / weights.sum()

    @staticmethod
    def _class_loss(probability: Tensor, truth: Tensor) -> Tensor:
        errors, order = torch.sort((truth.to(probability.dtype) - probability).abs(), descending=True)
        return errors.double() @ jaccard_gradient(truth[order])


def jaccard_gradient(truth: Tensor) -> Tensor:
    """Gradient of the Lovász extension of the Jaccard loss for sorted errors: bool (P,), one true -> fp64 (P,).

    Algorithm 1 of the paper subtracts neighbouring values of 1 - I/U, which cancel among many pixels. A pixel of the
    class lowers I by 1, which adds 1/U; any other raises U by 1, which adds I/(U - 1) - I/U = I/(U (U - 1)).
    """
    total = truth.sum()
    intersection = (total - truth.cumsum(0)).double()
    union = (total + (~truth).cumsum(0)).double()
    return torch.where(truth, 1 / union, intersection / (union * (union - 1)).clamp_min(1))
