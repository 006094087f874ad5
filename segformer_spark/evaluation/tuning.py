"""The search for a decision on labelled images: temperature, thresholds per class and floor.

Logits are kept for a sample of each image's pixels, on a grid of native rows and columns, so that hundreds of
decisions are compared without asking the model again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from segformer_spark.data.dataset import Mask
from segformer_spark.evaluation.decision import Decision, mean_expected_iou, rule_thresholds
from segformer_spark.metrics.confusion import overlaps
from segformer_spark.metrics.headline import Headline

TEMPERATURES = (0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0, 2.5, 3.0)
FLOORS = (0.02, 0.05, 0.1, 0.2)

_MOST_VALUES, _MOST_PIXELS, _LEAST_PIXELS = 15_000_000, 65_536, 1024
_STEPS = (1.0, 0.5, 0.25)
_SMALLEST_GAIN = 1e-6


@dataclass(frozen=True)
class Samples:
    """Pixels of labelled images.

    Attributes:
        logits: fp16 (P, C) at native size.
        labels: int64 (P,).
        image: int64 (P,), ascending: the image that each pixel is of.
        coarse: logits (C, h, w) of every image on the model's own grid, fp16.
        class_names: of the C classes.
    """

    logits: Tensor
    labels: Tensor
    image: Tensor
    coarse: Sequence[Tensor]
    class_names: Sequence[str]
    _iou: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def headline(self, offsets: Tensor, temperature: float = 1.0) -> Headline:
        """Metrics of the decision that subtracts `offsets` (C,), or (N, C) per image, from the tempered logits."""
        images, classes = len(self.coarse), len(self.class_names)
        counts = torch.zeros(images * classes * classes, dtype=torch.int64)
        for part in _slices(len(self.labels)):
            scores = self.logits[part].float() / temperature
            scores -= offsets if offsets.ndim == 1 else offsets[self.image[part]]
            joint = (self.image[part] * classes + self.labels[part]) * classes + scores.argmax(1)
            counts += torch.bincount(joint, minlength=len(counts))
        joint = counts.view(images, classes, classes)
        return Headline(overlaps(joint.numpy()), self.class_names)

    def thresholds(self, decision: Decision) -> Tensor:
        """Thresholds (C,), or (N, C) of every image."""
        if decision.rule != "expected_iou":
            return torch.tensor(decision.thresholds or (1.0,) * len(self.class_names))
        if decision.temperature not in self._iou:
            tempered = (one.float() / decision.temperature for one in self.coarse)
            self._iou[decision.temperature] = torch.stack([mean_expected_iou([one]) for one in tempered])
        return rule_thresholds(decision, self._iou[decision.temperature])

    def score(self, decision: Decision) -> Headline:
        """Metrics of a decision, but for its postprocessing."""
        return self.headline(self.thresholds(decision).log(), decision.temperature)


def _slices(length: int, step: int = 2_000_000) -> list[slice]:
    return [slice(first, first + step) for first in range(0, length, step)]


Sampled = tuple[Tensor, Tensor, Tensor]
"""Of an image: logits (P, C) and labels (P,) of pixels, logits (C, h, w) on the model's grid."""


class Sampler:
    """Collects samples, one image after another."""

    def __init__(self, num_images: int, class_names: Sequence[str], ignore_index: int) -> None:
        self.ignore_index = ignore_index
        fits = _MOST_VALUES // max(1, num_images * len(class_names))
        self.pixels_per_image = min(_MOST_PIXELS, max(_LEAST_PIXELS, fits))
        self._parts: list[Sampled] = []

    def add(self, logits: Tensor, mask: Mask) -> None:
        """Logits (C, h, w) on the model's grid, and the mask (H, W) of what they show at native size."""
        stride = max(1, round(math.sqrt(mask.size / self.pixels_per_image)))
        large = functional.interpolate(logits[None].float(), size=mask.shape, mode="bilinear", align_corners=False)[0]
        first = stride // 2
        labels = torch.from_numpy(np.ascontiguousarray(mask[first::stride, first::stride])).flatten().long()
        values = large[:, first::stride, first::stride].flatten(1).T
        labelled = labels != self.ignore_index
        self._parts.append((values[labelled].half().cpu(), labels[labelled], logits.half().cpu()))

    def parts(self) -> list[Sampled]:
        """What was collected, per image."""
        return self._parts


def joined(parts: Sequence[Sampled], class_names: Sequence[str]) -> Samples:
    """Samples of several images, in their order."""
    numbers = torch.tensor([len(labels) for _, labels, _ in parts])
    return Samples(
        torch.cat([values for values, _, _ in parts]),
        torch.cat([labels for _, labels, _ in parts]),
        torch.repeat_interleave(torch.arange(len(numbers)), numbers),
        [coarse for _, _, coarse in parts],
        class_names,
    )


def likely_temperature(samples: Samples) -> float:
    """The temperature of the highest likelihood of the labels (Guo et al., ICML 2017), by golden section."""
    stride = max(1, len(samples.labels) // 1_000_000)
    logits, labels = samples.logits[::stride].float(), samples.labels[::stride]
    return _golden_section(lambda t: float(functional.cross_entropy(logits / t, labels)), 0.25, 4.0)


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum is lowest, to 0.005."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 0.005:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2


@dataclass(frozen=True)
class _Goal:
    """The first metric is to rise, and none may fall below that of argmax."""

    least: dict[str, float]

    def __call__(self, found: Headline) -> float:
        values = {name: found.value(name) for name in found.names}
        for name, least in self.least.items():
            value = values[name]
            if value is None or value < least:
                return -math.inf
        return values[found.names[0]] or 0.0


def tuned(samples: Samples) -> dict[str, Decision]:
    """{what was chosen: decision}, each chosen by the first metric, with no metric below that of argmax."""
    plain = samples.score(Decision())
    goal = _Goal({name: value for name in plain.names if (value := plain.value(name)) is not None})
    likely = likely_temperature(samples)
    rules = [Decision("expected_iou", temperature=t, floor=floor) for t in TEMPERATURES for floor in FLOORS]
    best = max(rules, key=lambda one: goal(samples.score(one)))
    constants = Decision("thresholds", thresholds=_ascend(samples, Decision("thresholds"), goal))
    return {
        "constants": constants,
        "expected IoU, T = 1": Decision("expected_iou"),
        "expected IoU, T by likelihood": Decision("expected_iou", temperature=round(likely, 3)),
        "expected IoU, T by score": best,
        "expected IoU, T by score, factors": replace(best, thresholds=_ascend(samples, best, goal)),
    }


def _ascend(samples: Samples, decision: Decision, goal: _Goal) -> tuple[float, ...]:
    """Factors on the thresholds of each class, by coordinate ascent in steps of their logarithm."""
    classes = len(samples.class_names)
    start = samples.thresholds(decision).log()
    logs: NDArray[np.float64] = np.zeros(classes)

    def value(candidate: NDArray[np.float64]) -> float:
        offsets = start + torch.from_numpy(candidate).float()
        if decision.rule == "expected_iou":
            offsets = offsets.clamp(min=math.log(decision.floor))
        return goal(samples.headline(offsets, decision.temperature))

    best = value(logs)
    occurring = torch.bincount(samples.labels, minlength=classes) > 0
    for step in _STEPS:
        for index in np.flatnonzero(occurring.numpy()):
            for sign in (-1, 1):
                while True:
                    candidate = logs.copy()
                    candidate[index] += sign * step
                    reached = value(candidate)
                    if reached <= best + _SMALLEST_GAIN:
                        break
                    best, logs = reached, candidate
    # Only ratios count for constants; those of the rule are measured against its floor.
    logs = logs - logs.max() if decision.rule == "thresholds" else logs
    return tuple(float(f"{factor:.4g}") for factor in np.exp(logs))
