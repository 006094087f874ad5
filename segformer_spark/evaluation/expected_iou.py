"""The mask with the highest expected IoU, or Dice: which pixels to take, given how probable the class is in each.

For a mask S and probabilities p, with N = sum of p over all pixels,

    E(S) = sum of p over S / (|S| + N - sum of p over S)

is the ratio of the expected overlap to the expected union. Among all masks the largest E is that of
{p > E / (1 + E)} (Dinkelbach 1967), and 2 E / (1 + E), the same ratio for Dice, is largest for the same mask. Wang and
Dai (RankSEG, JMLR 2023; arXiv 2510.15362) show that such masks score higher than those of the most probable class.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_ITERATIONS, _ON_DEVICE = 50, 12
"""On a GPU the host does not ask whether the last iteration changed anything: it would wait for the answer."""


def expected_iou(probabilities: Tensor) -> Tensor:
    """The largest E (...) over all masks, for probabilities (..., n) in [0, 1]; 0 where all of them are 0.

    From below: each iteration takes the mask that the last E asks for, whose E is not smaller. It ends when no mask
    changes, usually after five or six.
    """
    total = probabilities.sum(-1, dtype=torch.float64)
    found = torch.zeros_like(total)
    on_cpu = probabilities.device.type == "cpu"
    for _ in range(_MOST_ITERATIONS if on_cpu else _ON_DEVICE):
        taken = probabilities > threshold_of(found)[..., None].to(probabilities.dtype)
        overlap = (probabilities * taken).sum(-1, dtype=torch.float64)
        union = taken.sum(-1) + total - overlap
        better = torch.where(union > 0, overlap / union.clamp(min=torch.finfo(torch.float64).tiny), 0)
        better = torch.maximum(better, found)
        if on_cpu and torch.equal(better, found):
            break
        found = better
    return found


def threshold_of(iou: Tensor) -> Tensor:
    """The probability above which a pixel belongs to the mask whose expected IoU is `iou`: at most a half."""
    return iou / (1 + iou)
