"""From class probabilities to class ids: the most probable class, or the one that scores best.

Every rule divides the probability of a class by a threshold of that class; the class with the largest quotient is
taken. With argmax all thresholds are equal. Where several classes lie above their thresholds this is the probability
ratio of RankSEG (arXiv 2510.15362). A quotient is a difference of logarithms, so a rule costs one number per class
that is subtracted from the logits before they are enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from segformer_spark.evaluation.expected_iou import expected_iou, threshold_of
from segformer_spark.evaluation.postprocessing import Postprocessing

Rule = Literal["argmax", "thresholds", "expected_iou"]

_LEAST = 1e-4


@dataclass(frozen=True)
class Decision:
    """How class ids follow from logits.

    Attributes:
        rule: argmax; thresholds: of `thresholds`, the same in all images; expected_iou: of each image, those of the
            masks with the highest expected IoU (`evaluation.expected_iou`).
        temperature: logits are divided by it before they become probabilities.
        thresholds: one per class; with expected_iou a factor on the image's own threshold.
        floor: smallest threshold of expected_iou. A class that is hardly there has an expected IoU near 0, and every
            pixel would lie above its threshold.
        postprocessing: corrections of the mask.
    """

    rule: Rule = "argmax"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    floor: float = 0.05
    postprocessing: Postprocessing = field(default_factory=Postprocessing)

    @property
    def is_argmax(self) -> bool:
        """Whether the classes are those of the largest logits."""
        return self.rule == "argmax"


ARGMAX = Decision()


def image_thresholds(decision: Decision, passes: Sequence[Tensor]) -> Tensor:
    """Threshold (C,) of each class in one image.

    Args:
        passes: logits (C, h, w) in fp32 of every pass, over the temperature. The expected IoU is that on the model's
            own grid, whose cells stand for equal areas; the mean over the passes.
    """
    if decision.rule == "expected_iou":
        return rule_thresholds(decision, mean_expected_iou(passes))
    given = decision.thresholds or (1.0,) * len(passes[0])
    return torch.tensor(given, device=passes[0].device, dtype=torch.float32)


def mean_expected_iou(passes: Sequence[Tensor]) -> Tensor:
    """The expected IoU (C,) of each class in one image, the mean over its passes (C, h, w)."""
    return torch.stack([expected_iou(one.softmax(0).flatten(1)) for one in passes]).mean(0)


def rule_thresholds(decision: Decision, iou: Tensor) -> Tensor:
    """Thresholds (..., C) of expected_iou, from the expected IoU (..., C)."""
    given = decision.thresholds or (1.0,) * iou.shape[-1]
    factors = torch.tensor(given, device=iou.device, dtype=torch.float32)
    return (threshold_of(iou).float() * factors).clamp(min=max(decision.floor, _LEAST))
