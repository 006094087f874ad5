"""Counts that add up: every metric over a data set is computed from sums over all images, each exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EXACT_IN_FP32 = 2**24
"""OpenCV counts in fp32."""

PREDICTED, TRUTH, OVERLAP = 0, 1, 2


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts (C, C) int64, rows truth, columns prediction, over the pixels whose truth is not `ignore_index`.

    Args:
        prediction, truth: class ids of one shape, any integer type.

    Raises:
        ValueError: an id that is neither a class nor `ignore_index`.
    """
    return joint_counts(prediction, truth, num_classes, ignore_index)[:-1]


def joint_counts(prediction: Tensor, truth: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts (C + 1, C) int64 in one pass; the last row is what was predicted where the truth is `ignore_index`."""
    bytes_here = prediction.dtype == truth.dtype == torch.uint8 and prediction.device.type == "cpu"
    if bytes_here and num_classes < ignore_index and truth.numel() <= _EXACT_IN_FP32:
        joint = _joint_counts_of_bytes(prediction, truth, num_classes)
        known = int(joint[num_classes].sum()) == np.count_nonzero(truth.numpy() == ignore_index)
    else:
        # A row and a column more than are wanted: what is neither a class nor ignored is counted there.
        rows, columns = truth.flatten().long(), prediction.flatten().long()
        foreign = (rows < 0) | (rows >= num_classes)
        rows = torch.where(foreign, torch.where(rows == ignore_index, num_classes, num_classes + 1), rows)
        columns = torch.where((columns < 0) | (columns >= num_classes), num_classes, columns)
        size = (num_classes + 2) * (num_classes + 1)
        joint = torch.bincount(rows * (num_classes + 1) + columns, minlength=size).view(num_classes + 2, -1)
        known = not bool(joint[-1].any())
        joint = joint[:-1]
    if not known or bool(joint[:, -1].any()):
        raise ValueError(_foreign(prediction, truth, num_classes, ignore_index))
    return joint[:, :-1]


def _joint_counts_of_bytes(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(C + 1, C + 1) int64 from uint8 on the CPU; ids from C on are counted in the last row or column."""
    side = num_classes + 1
    dtype = np.uint8 if side * side <= 2**8 else np.uint16
    fused = np.minimum(truth.numpy(), num_classes).astype(dtype) * dtype(side)
    fused += np.minimum(prediction.numpy(), num_classes)
    counts = cv2.calcHist([fused.reshape(1, -1)], [0], None, [side * side], [0, side * side])
    return torch.from_numpy(counts.astype(np.int64)).view(side, side)


def _foreign(prediction: Tensor, truth: Tensor, num_classes: int, ignore_index: int) -> str:
    ids = {"label": truth[truth != ignore_index], "predicted id": prediction}
    found = [
        f"{name} {int(other[0])}"
        for name, values in ids.items()
        if len(other := values[(values < 0) | (values >= num_classes)])
    ]
    return f"{' and '.join(found)} is no class: there are {num_classes} classes"


def overlaps(joint: NDArray[np.int64]) -> NDArray[np.int64]:
    """Joint counts (N, C, C) of images, rows truth -> (N, C, 3): predicted, true and overlapping pixels."""
    return np.stack([joint.sum(1), joint.sum(2), np.diagonal(joint, axis1=1, axis2=2)], -1)


@dataclass
class EvaluationCounts:
    """Counts of an evaluation.

    Attributes:
        confusion: int64 (K, C, C), one matrix per category (of spacecraft), rows truth, columns prediction.
        per_image: int64 (N, C, 3): predicted, true and overlapping pixels per image and class.
        seen: int64 (N,): how often each image was counted; all ones at the end.
        ignored: int64 (K, C): what was predicted on pixels without a label.
    """

    confusion: Tensor
    per_image: Tensor
    seen: Tensor
    ignored: Tensor

    @classmethod
    def zeros(
        cls, num_images: int, num_classes: int, num_categories: int, device: torch.device | str = "cpu"
    ) -> EvaluationCounts:
        """Empty counts; `num_categories` of 0 counts as 1."""
        return cls(
            torch.zeros(max(num_categories, 1), num_classes, num_classes, dtype=torch.int64, device=device),
            torch.zeros(num_images, num_classes, 3, dtype=torch.int64, device=device),
            torch.zeros(num_images, dtype=torch.int64, device=device),
            torch.zeros(max(num_categories, 1), num_classes, dtype=torch.int64, device=device),
        )

    def add(self, index: int, category: int, prediction: Tensor, truth: Tensor, ignore_index: int) -> None:
        """Count image `index` from class ids (H, W)."""
        counts = joint_counts(prediction, truth, self.confusion.shape[-1], ignore_index)
        matrix = counts[:-1]
        self.confusion[category] += matrix
        self.per_image[index] += torch.stack([matrix.sum(0), matrix.sum(1), matrix.diagonal()], dim=1)
        self.seen[index] += 1
        self.ignored[category] += counts[-1]

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
