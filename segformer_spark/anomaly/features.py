"""Anomaly scores in feature space: distances to what training data look like before the classifier.

Everything is fitted once on training data, from sums over its pixels in fp64: neither the order of images nor the
number of ranks matters. Scores are made on the model's own grid and enlarged bilinearly.

- mahalanobis: the distance to the nearest class mean under one covariance; its square is that of Lee et al. 2018,
  equation 2.
- heat: z-scored energy of a Gaussian mixture with that covariance, plus z-scored logit energy, the two priors of HEAT
  (Lafon et al. 2023); their learnt correction is left out.
- heat_hybrid: an earlier study's own mixture: energy, Mahalanobis distance and KL divergence of a pixel's probabilities
  from their mean over 3 x 3 neighbours, each z-scored, weighted at every pixel by the softmax of the three.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from segformer_spark.data.dataset import IGNORE_INDEX, Mask
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import atomic_file

_PARTS = ("energy", "mahalanobis", "mixture", "divergence")
_ENERGY, _MAHALANOBIS, _MIXTURE, _DIVERGENCE = range(4)
"""What is z-scored: logit energy, distance, mixture energy, KL divergence."""

_RIDGE = 1e-6
"""Added to the covariance's diagonal, relative to its mean: features that are always 0 have no variance."""

MapScore = Callable[[Tensor, Tensor], Tensor]
"""Logits (C, h, w) and features (D, h', w') of one image -> scores on the features' grid."""

Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureStatistics:
    """What training data look like.

    Attributes:
        means: (K, D) of the K classes that were seen.
        precision: (D, D), the inverse of the covariance within classes.
        log_priors: (K,) log shares of the classes.
        centers, scales: (4,) mean and deviation of _PARTS over training pixels.
    """

    means: Tensor
    precision: Tensor
    log_priors: Tensor
    centers: Tensor
    scales: Tensor


class GaussianSums:
    """First pass: counts, sums and second moments of the features by true class."""

    def __init__(self, num_classes: int, num_features: int, device: torch.device) -> None:
        self.num_features = num_features
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._sums = torch.zeros(num_classes, num_features, dtype=torch.float64, device=device)
        self._moments = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in pixels: features (N, D) and their classes (N,)."""
        wide = features.double()
        self._counts += torch.bincount(labels, minlength=len(self._counts)).double()
        self._sums.index_add_(0, labels, wide)
        self._moments += wide.T @ wide

    def finish(self, total: Total) -> tuple[Tensor, Tensor, Tensor]:
        """Means, precision and log priors of the classes that any rank has seen.

        Raises:
            UserError: there was no labelled pixel.
        """
        counts, sums, moments = (total(part) for part in (self._counts, self._sums, self._moments))
        seen = counts > 0
        if not bool(seen.any()):
            raise UserError("anomaly fit: the split has no labelled pixel")
        counts, sums = counts[seen], sums[seen]
        means = sums / counts[:, None]
        covariance = (moments - means.T @ (means * counts[:, None])) / counts.sum()
        ridge = _RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).to(covariance))
        return means, (precision + precision.T) / 2, (counts / counts.sum()).log()


class PartSums:
    """Second pass: mean and deviation of the parts over all pixels."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, len(_PARTS), dtype=torch.float64, device=device)

    def add(self, parts: Tensor) -> None:
        """Take in an image's parts (4, h, w)."""
        wide = parts.double().flatten(1)
        count = torch.full_like(wide[:, 0], wide.shape[1])
        self._sums += torch.stack([count, wide.sum(1), wide.square().sum(1)])

    def finish(self, total: Total) -> tuple[Tensor, Tensor]:
        """Means and deviations (4,)."""
        count, sums, squares = total(self._sums)
        mean = sums / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def labelled_pixels(features: Tensor, truth: Mask, index: int, most: int) -> tuple[Tensor, Tensor]:
    """At most so many labelled pixels of an image, always the same for one index: features (N, D), classes (N,).

    Args:
        features: (D, h, w).
        truth: (H, W); the label of a feature is that of the pixel at its centre.
    """
    height, width = features.shape[-2:]
    rows, columns = (_centers(small, large) for small, large in zip((height, width), truth.shape, strict=True))
    labels = truth[rows[:, None], columns[None]].ravel()
    pixels = np.flatnonzero(labels != IGNORE_INDEX)
    if len(pixels) > most:
        pixels = np.sort(np.random.default_rng([index, most]).choice(pixels, most, replace=False))
    chosen = torch.from_numpy(pixels).to(features.device)
    return features.flatten(1).T[chosen], torch.from_numpy(labels[pixels].astype(np.int64)).to(features.device)


def _centers(small: int, large: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.minimum(((np.arange(small) + 0.5) * large / small).astype(np.int64), large - 1)


def distances(features: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Squared Mahalanobis distances (K, h, w) of features (D, h, w) to K means."""
    flat = features.flatten(1).T.to(precision)
    at_means = means @ precision
    own = ((flat @ precision) * flat).sum(1)
    of_means = (at_means * means).sum(1)
    squared: Tensor = (own[None] - 2 * at_means @ flat.T + of_means[:, None]).clamp_min(0)
    return squared.view(len(means), *features.shape[-2:])


def parts_of(logits: Tensor, features: Tensor, gaussians: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """_PARTS (4, h, w) in fp64 on the features' grid; higher is more anomalous."""
    means, precision, log_priors = gaussians
    logits = functional.interpolate(
        logits[None].double(), size=features.shape[-2:], mode="bilinear", align_corners=False
    )[0]
    squared = distances(features, means, precision)
    energy = -torch.logsumexp(logits, 0)
    mixture = -torch.logsumexp(log_priors[:, None, None] - squared / 2, 0)
    return torch.stack([energy, squared.amin(0), mixture, _divergence(logits.softmax(0))])


def _divergence(probabilities: Tensor) -> Tensor:
    """KL(p || mean of p over 3 x 3 neighbours), in nats; beyond the border there are no neighbours."""
    mean = functional.avg_pool2d(probabilities[None], 3, 1, 1, count_include_pad=False)[0]
    tiny = torch.finfo(probabilities.dtype).tiny
    ratio = probabilities.clamp_min(tiny).log() - mean.clamp_min(tiny).log()
    total: Tensor = (probabilities * ratio).sum(0)
    return total


def build_map_score(method: str, statistics: FeatureStatistics) -> MapScore:
    """The score of one of `methods.FEATURES`."""

    def score(logits: Tensor, features: Tensor) -> Tensor:
        moved = (statistics.means, statistics.precision, statistics.log_priors)
        means, precision, log_priors = (value.to(features.device) for value in moved)
        if method == "mahalanobis":
            nearest: Tensor = distances(features, means, precision).amin(0)
            return nearest.sqrt().float()
        parts = parts_of(logits, features, (means, precision, log_priors))
        centers, scales = (value.to(parts)[:, None, None] for value in (statistics.centers, statistics.scales))
        scored: Tensor = (parts - centers) / scales
        if method == "heat":
            return scored[[_ENERGY, _MIXTURE]].sum(0).float()
        mixed = scored[[_ENERGY, _MAHALANOBIS, _DIVERGENCE]]
        return (mixed.softmax(0) * mixed).sum(0).float()

    return score


_TENSORS = ("means", "precision", "log_priors", "centers", "scales")


def write_features(
    path: Path, statistics: FeatureStatistics, class_names: Sequence[str], origin: Mapping[str, str]
) -> None:
    """A safetensors file; what it was fitted on stands in its header."""
    tensors = {name: getattr(statistics, name).cpu().contiguous() for name in _TENSORS}
    header = {"class_names": json.dumps(list(class_names)), **origin}
    with atomic_file(path) as stream:
        stream.write(save(tensors, metadata=header))


def read_features(path: Path, class_names: Sequence[str], model_step: int) -> FeatureStatistics:
    """What `write_features` wrote.

    Raises:
        UserError: there is no such file, or it is of another model or other classes.
    """
    again = "run `segformer-spark anomaly fit`"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        names, step = json.loads(header["class_names"]), int(header["model_step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: no statistics of features can be read: {again} first") from error
    if names != list(class_names) or step != model_step:
        raise UserError(f"{path}: these statistics are of another model or other classes: {again} again")
    return FeatureStatistics(**tensors)
