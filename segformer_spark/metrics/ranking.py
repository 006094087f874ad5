"""How well a score ranks positives above negatives: ROC, precision and recall, exactly, from counts per score.

Definitions are scikit-learn's (`roc_auc_score`, `average_precision_score`). FPR at a recall is that of the highest
threshold that reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BINS = 2**16
_SIGN = 2**15
_LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class Ranking:
    """Cumulative counts from the highest score down.

    Attributes:
        thresholds: (K,) distinct scores, descending; "positive" means at or above.
        true_positives, false_positives: (K,) at or above each.
    """

    thresholds: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @property
    def positives(self) -> int:
        return int(self.true_positives[-1]) if len(self.true_positives) else 0

    @property
    def negatives(self) -> int:
        return int(self.false_positives[-1]) if len(self.false_positives) else 0

    @property
    def is_defined(self) -> bool:
        """Whether there are both kinds."""
        return self.positives > 0 and self.negatives > 0

    @property
    def recall(self) -> NDArray[np.float64]:
        return self.true_positives / max(self.positives, 1)

    @property
    def precision(self) -> NDArray[np.float64]:
        called = self.true_positives + self.false_positives
        return np.asarray(self.true_positives / np.maximum(called, 1))

    @property
    def false_positive_rate(self) -> NDArray[np.float64]:
        return self.false_positives / max(self.negatives, 1)

    @property
    def f1(self) -> NDArray[np.float64]:
        called = self.true_positives + self.false_positives
        return np.asarray(2 * self.true_positives / np.maximum(called + self.positives, 1))

    @property
    def best(self) -> int:
        """Index of the threshold with the highest F1."""
        return int(self.f1.argmax())

    def auroc(self) -> float | None:
        """Area under the ROC curve; None without both kinds."""
        if not self.is_defined:
            return None
        return float(np.trapezoid(np.r_[0.0, self.recall], np.r_[0.0, self.false_positive_rate]))

    def average_precision(self) -> float | None:
        """Sum of precision times the growth of recall (AUPR); None without both kinds."""
        if not self.is_defined:
            return None
        return float((np.diff(np.r_[0.0, self.recall]) * self.precision).sum())

    def fpr_at(self, recall: float) -> float | None:
        """False-positive rate of the highest threshold with this recall; None without both kinds."""
        if not self.is_defined:
            return None
        return float(self.false_positive_rate[int(np.argmax(self.recall >= recall))])


def rank(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> Ranking:
    """The ranking of single scores, of any shape."""
    values, inverse = np.unique(scores.ravel(), return_inverse=True)
    positive = np.bincount(inverse[is_positive.ravel()], minlength=len(values))
    negative = np.bincount(inverse, minlength=len(values)) - positive
    return _ranking(values.astype(np.float64), positive, negative)


def _ranking(ascending: NDArray[np.float64], positive: NDArray[np.int64], negative: NDArray[np.int64]) -> Ranking:
    return Ranking(ascending[::-1].copy(), positive[::-1].cumsum(), negative[::-1].cumsum())


@dataclass
class ScoreHistogram:
    """Counts of scores in float16, one bin per number: a fixed megabyte for any number of pixels, and it adds up.

    Finite scores beyond float16's range, +-65,504, tie at its ends.

    Attributes:
        counts: int64 (2, 65536), negatives and positives, in ascending order of the score.
    """

    counts: Tensor

    @classmethod
    def empty(cls, device: torch.device | None = None) -> ScoreHistogram:
        return cls(torch.zeros(2, _BINS, dtype=torch.int64, device=device))

    def add(self, scores: Tensor, is_positive: Tensor) -> None:
        """Count scores (...) with their truth (...).

        Raises:
            ValueError: a score is not a number.
        """
        if bool(scores.isnan().any()):
            raise ValueError("a score is not a number")
        within = torch.where(scores.isinf(), scores, scores.clamp(-_LARGEST, _LARGEST))
        half = within.half() + 0.0  # minus zero becomes zero
        bits = half.view(torch.int16).to(torch.int64)
        # Negative numbers grow as their bits shrink.
        bins = torch.where(bits < 0, ~bits, bits + _SIGN)
        fused = bins.flatten() + _BINS * is_positive.flatten().to(torch.int64)
        self.counts += torch.bincount(fused, minlength=2 * _BINS).view(2, _BINS)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> ScoreHistogram:
        """The sum over ranks."""
        return ScoreHistogram(total(self.counts))

    def ranking(self) -> Ranking:
        """Of the scores as float16."""
        negative, positive = self.counts.cpu().numpy()
        used = np.flatnonzero(negative + positive)
        bits = np.where(used < _SIGN, ~used, used - _SIGN).astype(np.int16)
        return _ranking(bits.view(np.float16).astype(np.float64), positive[used], negative[used])
