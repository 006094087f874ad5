"""Cross-entropy on hard pixels (online hard example mining, Shrivastava et al. 2016)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from segformer_spark.losses.base import GlobalBatchLoss, pixel_sum


class OhemLoss(GlobalBatchLoss):
    """Weighted mean cross-entropy over the pixels whose true class has a probability below `threshold`.

    Of every image at least `min_share` of its labelled pixels are kept, the hardest; chosen per image, so that the
    choice does not change with the way a batch is divided among ranks.
    """

    def __init__(self, *, threshold: float = 0.7, min_share: float = 0.1, **shared: Any) -> None:
        super().__init__(**shared)
        self.threshold, self.min_share = threshold, min_share

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) float and labels (B, H, W) int64 -> scalar."""
        valid, target, log_p = self.true_class(logits, labels)
        kept = self._hard_pixels(log_p.detach(), valid)
        weight = self.weighted(kept.to(log_p.dtype), target)
        return self.divide(-pixel_sum(weight * log_p), pixel_sum(weight))

    def _hard_pixels(self, log_p: Tensor, valid: Tensor) -> Tensor:
        """Which pixels (B, H, W) count."""
        probability = log_p.exp()
        hard = valid & (probability < self.threshold)
        for image, (own, labelled) in enumerate(zip(probability, valid, strict=True)):
            candidates = own[labelled]
            number = math.ceil(self.min_share * len(candidates))
            if number > 0:
                hard[image] |= labelled & (own <= candidates.kthvalue(number).values)
        return hard
