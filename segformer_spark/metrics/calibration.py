"""Expected calibration error and reliability diagram (Guo et al., ICML 2017) of the predicted class of every pixel.

Pixels are put into bins of equal width by how probable their predicted class is; ECE is the mean over the pixels of
the difference between confidence and accuracy of their bin. Confidences are added as integers of 2^-20, so that sums do
not depend on their order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15
PIXELS, CORRECT, CONFIDENCE = 0, 1, 2

_UNIT = 2**20


def calibration_counts(confidence: Tensor, correct: Tensor) -> Tensor:
    """int64 (BINS, 3): pixels, correct pixels and sum of confidences in 2^-20, of pixels (P,)."""
    bins = (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    out = torch.zeros(BINS, 3, dtype=torch.int64, device=confidence.device)
    out[:, PIXELS] = torch.bincount(bins, minlength=BINS)
    out[:, CORRECT] = torch.bincount(bins[correct], minlength=BINS)
    out[:, CONFIDENCE].scatter_add_(0, bins, (confidence.double() * _UNIT).round().long())
    return out


def expected_calibration_error(counts: NDArray[np.int64]) -> float | None:
    """ECE of counts (BINS, 3); None without pixels."""
    total = int(counts[:, PIXELS].sum())
    if not total:
        return None
    return float(np.abs(counts[:, CONFIDENCE] / _UNIT - counts[:, CORRECT]).sum() / total)


def reliability(counts: NDArray[np.int64]) -> list[dict[str, float | int | None]]:
    """Per bin: its borders, pixels, mean confidence and accuracy (None where it is empty)."""
    rows: list[dict[str, float | int | None]] = []
    for index, (pixels, correct, confidence) in enumerate(counts.tolist()):
        rows.append(
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "pixels": pixels,
                "confidence": confidence / _UNIT / pixels if pixels else None,
                "accuracy": correct / pixels if pixels else None,
            }
        )
    return rows
