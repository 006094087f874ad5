"""Counts that add up: every figure over a data set is made from sums over all images, each exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTED, TRUTH, OVERLAP = 0, 1, 2


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts (C, C) int64, rows truth, columns prediction, over the pixels whose truth is not `ignore_index`.

    Args:
        prediction, truth: class ids of one shape, any integer type.
    """
    fused = truth.flatten().long() * num_classes + prediction.flatten().long()
    fused = fused[truth.flatten() != ignore_index]
    return torch.bincount(fused, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass
class EvaluationCounts:
    """Counts of an evaluation.

    Attributes:
        confusion: int64 (G, C, C), one matrix per group (spacecraft), rows truth, columns prediction.
        per_image: int64 (N, C, 3): predicted, true and overlapping pixels per image and class.
        seen: int64 (N,): how often each image was counted; all ones at the end.
        ignored: int64 (G, C): what was predicted on pixels without a label.
    """

    confusion: Tensor
    per_image: Tensor
    seen: Tensor
    ignored: Tensor

    @classmethod
    def zeros(
        cls, num_images: int, num_classes: int, num_groups: int, device: torch.device | str = "cpu"
    ) -> EvaluationCounts:
        """Empty counts; `num_groups` of 0 counts as 1."""
        return cls(
            torch.zeros(max(num_groups, 1), num_classes, num_classes, dtype=torch.int64, device=device),
            torch.zeros(num_images, num_classes, 3, dtype=torch.int64, device=device),
            torch.zeros(num_images, dtype=torch.int64, device=device),
            torch.zeros(max(num_groups, 1), num_classes, dtype=torch.int64, device=device),
        )

    def add(self, index: int, group: int, prediction: Tensor, truth: Tensor, ignore_index: int) -> None:
        """Count image `index` from class ids (H, W)."""
        matrix = confusion_matrix(prediction, truth, self.confusion.shape[-1], ignore_index)
        self.confusion[group] += matrix
        self.per_image[index] += torch.stack([matrix.sum(0), matrix.sum(1), matrix.diagonal()], dim=1)
        self.seen[index] += 1
        unlabelled = prediction[truth == ignore_index].flatten().long()
        self.ignored[group] += torch.bincount(unlabelled, minlength=self.ignored.shape[-1])

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> EvaluationCounts:
        """Add the counts of all ranks.

        Raises:
            AssertionError: an image was counted twice or never.
        """
        total = EvaluationCounts(
            all_reduce(self.confusion), all_reduce(self.per_image), all_reduce(self.seen), all_reduce(self.ignored)
        )
        assert bool((total.seen == 1).all()), "every image must be evaluated on exactly one rank"
        return total
