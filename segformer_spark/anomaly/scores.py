"""Anomaly scores of pixels from logits; higher is more anomalous.

- msp: 1 - the highest softmax probability (Hendrycks and Gimpel 2017).
- max_logit: the highest logit, negated (Hendrycks et al. 2022).
- energy: -T log sum exp(logits / T) (Liu et al. 2020).
- entropy: of the softmax, in nats.
- margin: 1 - the difference of the two highest probabilities.
- standardized_max_logit: max_logit, standardised by the mean and deviation of its class on training data (Jung et al.
  2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from segformer_spark.anomaly.methods import LOGIT_STATISTICS
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.json_file import read_json_object

Score = Callable[[Tensor], Tensor]
"""Logits (C, H, W) in fp32 -> scores (H, W)."""


@dataclass(frozen=True)
class ClassStatistics:
    """Highest logits on training data by predicted class: mean and deviation (C,), and pixels seen (C,)."""

    mean: Tensor
    deviation: Tensor
    pixels: Tensor


def build_score(method: str, *, temperature: float = 1.0, statistics: ClassStatistics | None = None) -> Score:
    """The score of a method.

    Raises:
        UserError: it needs statistics that were not given.
    """
    if method in LOGIT_STATISTICS:
        if statistics is None:
            raise UserError(f"{method} needs statistics of training data: segformer-spark anomaly fit RUN")
        return partial(_standardized_max_logit, statistics)
    plain: dict[str, Score] = {
        "msp": _msp,
        "max_logit": lambda logits: -logits.amax(0),
        "energy": lambda logits: -temperature * torch.logsumexp(logits / temperature, 0),
        "entropy": _entropy,
        "margin": _margin,
    }
    return plain[method]


def _msp(logits: Tensor) -> Tensor:
    return 1 - logits.softmax(0).amax(0)


def _entropy(logits: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(logits.softmax(0)).sum(0)
    return entropy


def _margin(logits: Tensor) -> Tensor:
    if len(logits) < 2:
        return torch.zeros_like(logits[0])
    highest: Tensor = logits.softmax(0).topk(2, dim=0).values
    return 1 - (highest[0] - highest[1])


def _standardized_max_logit(statistics: ClassStatistics, logits: Tensor) -> Tensor:
    highest, classes = logits.max(0)
    mean, deviation = (value.to(logits.device, logits.dtype) for value in (statistics.mean, statistics.deviation))
    return (mean[classes] - highest) / deviation[classes]


class StatisticsSums:
    """Gathers ClassStatistics over images and ranks, in fp64."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._sums = torch.zeros(3, num_classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor) -> None:
        """Take in the logits (C, H, W) of an image."""
        highest, classes = logits.double().max(0)
        flat = classes.flatten()
        for row, values in enumerate((torch.ones_like(highest), highest, highest.square())):
            self._sums[row].index_add_(0, flat, values.flatten())

    def finish(self, total: Callable[[Tensor], Tensor]) -> ClassStatistics:
        """Sum over ranks. Classes that were never predicted get mean 0 and deviation 1: they score as max_logit."""
        pixels, sums, squares = total(self._sums).cpu()
        count = pixels.clamp_min(1)
        mean = sums / count
        variance = (squares / count - mean.square()).clamp_min(0)
        deviation = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
        return ClassStatistics(mean, deviation, pixels.long())


def write_statistics(path: Path, statistics: ClassStatistics, class_names: Sequence[str], model_step: int) -> None:
    """JSON: a row per class, and the optimizer step of the model."""
    rows = zip(class_names, statistics.mean, statistics.deviation, statistics.pixels, strict=True)
    table = [
        {"name": name, "mean": float(mean), "deviation": float(deviation), "pixels": int(pixels)}
        for name, mean, deviation, pixels in rows
    ]
    write_json(path, {"model_step": model_step, "max_logit": table})


def read_statistics(path: Path, class_names: Sequence[str], model_step: int) -> ClassStatistics:
    """What `write_statistics` wrote.

    Raises:
        UserError: there is no such file, or it is of another model or other classes.
    """
    try:
        content = read_json_object(path)
        table, step = content["max_logit"], content["model_step"]
        names = [row["name"] for row in table]
        columns = [torch.tensor([row[key] for row in table]) for key in ("mean", "deviation", "pixels")]
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no statistics can be read: run `segformer-spark anomaly fit` first") from error
    if names != list(class_names):
        raise UserError(f"{path}: these are statistics of {', '.join(names)}; fit again")
    if step != model_step:
        raise UserError(f"{path}: these are statistics of the model of step {step}, not {model_step}; fit again")
    return ClassStatistics(*columns)
