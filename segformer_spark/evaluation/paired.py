"""`runs compare`: two evaluations of the same images, image by image.

The difference of the headline metrics has a paired bootstrap interval; that of the mean over images of the mean IoU
also a permutation p (Fisher 1935): how often signs that are drawn at random for every group of images give a mean
difference as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.grouping import group_names
from segformer_spark.errors import UserError
from segformer_spark.evaluation.result_folder import foreground_iou, read_counted
from segformer_spark.metrics.detailed import Description
from segformer_spark.metrics.headline import Headline
from segformer_spark.metrics.image_counts import ImageCounts
from segformer_spark.metrics.resampling import Interval, image_weights, interval

_PERMUTATIONS = 10_000
_SHOWN = 5


@dataclass(frozen=True)
class PairedMetric:
    """One metric of both, the difference second - first and its interval."""

    name: str
    first: float | None
    second: float | None
    difference: float | None
    bounds: Interval


@dataclass(frozen=True)
class PairedEvaluations:
    """Two evaluations compared.

    Attributes:
        metrics: headline metrics and the mean over images of the mean IoU of their foreground.
        p: of a permutation test of the last.
        images: (name, first, second) of every common image, in the order of the difference.
        grouping: what was drawn together.
        left_out: images that only one of them has.
    """

    first: Path
    second: Path
    metrics: list[PairedMetric]
    p: float | None
    images: list[tuple[str, float, float]]
    grouping: str
    left_out: int


def compare_evaluations(first: Path, second: Path, group_by: str | None = None, seed: int = 0) -> PairedEvaluations:
    """Compare two folders that `evaluate` wrote.

    Raises:
        UserError: a folder is damaged, classes differ, or they have fewer than two images in common.
    """
    pair = [read_counted(folder) for folder in (first, second)]
    if pair[0][1].class_names != pair[1][1].class_names:
        raise UserError(
            f"{first} has the classes {', '.join(pair[0][1].class_names)}, {second} has "
            f"{', '.join(pair[1][1].class_names)}: they are not compared"
        )
    names = [_names(of) for _, of in pair]
    common = [name for name in names[0] if name in set(names[1])]
    if len(common) < 2:
        raise UserError(f"{first} and {second} have {len(common)} images in common; two are needed at least")
    taken = [_taken(counts, of, own, common) for (counts, of), own in zip(pair, names, strict=True)]
    groups = list(taken[0][1].group) if group_by is None else group_names(common, group_by)
    grouping = taken[0][1].grouping if group_by is None else f"groups by {group_by}"
    weights = image_weights(groups, seed=seed)
    heads = [Headline(counts.per_image, of.class_names) for counts, of in taken]
    replicates = [one.values(weights) for one in heads]
    metrics = [
        _paired(
            name,
            heads[0].value(name),
            heads[1].value(name),
            replicates[1][name] - replicates[0][name],
        )
        for name in heads[0].names
    ]
    quality = [foreground_iou(counts, of) for counts, of in taken]
    difference = quality[1] - quality[0]
    means = weights @ difference / np.maximum(weights.sum(1), 1)
    metrics.append(_paired("mean IoU of an image", float(quality[0].mean()), float(quality[1].mean()), means))
    order = np.argsort(difference, kind="stable")
    images = [(common[at], float(quality[0][at]), float(quality[1][at])) for at in order]
    left_out = len(names[0]) + len(names[1]) - 2 * len(common)
    return PairedEvaluations(
        first, second, metrics, permutation_p(difference, groups, seed), images, grouping, left_out
    )


def _names(of: Description) -> list[str]:
    return [
        f"{of.categories[category]}/{name}" if of.categories else name
        for name, category in zip(of.names, of.category, strict=True)
    ]


def _taken(
    counts: ImageCounts, of: Description, names: Sequence[str], common: Sequence[str]
) -> tuple[ImageCounts, Description]:
    position = {name: at for at, name in enumerate(names)}
    rows = [position[name] for name in common]
    return counts.take(np.array(rows)), of.take(rows)


def _paired(name: str, first: float | None, second: float | None, replicates: NDArray[np.float64]) -> PairedMetric:
    difference = None if first is None or second is None else second - first
    return PairedMetric(name, first, second, difference, interval(replicates))


def permutation_p(difference: NDArray[np.float64], groups: Sequence[str], seed: int = 0) -> float | None:
    """Two-sided p of the mean difference, by random signs of whole groups; None for one group or no difference."""
    names, membership = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or not difference.any():
        return None
    sums = np.bincount(membership, weights=difference, minlength=len(names))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_PERMUTATIONS, len(names)))
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12
    return float((as_large.sum() + 1) / (_PERMUTATIONS + 1))


def paired_table(found: PairedEvaluations) -> list[str]:
    """The comparison as lines."""
    lines = [f"A: {found.first}", f"B: {found.second}"]
    lines.append(f"{len(found.images)} images in common" + (f", {found.left_out} left out" if found.left_out else ""))
    lines.append(f"{'':<24}{'A':>9}{'B':>9}{'B - A':>9}  95 % interval, bootstrap over {found.grouping}")
    for one in found.metrics:
        bounds = (
            "-"
            if one.bounds.low is None or one.bounds.high is None
            else (f"{one.bounds.low:+.4f} to {one.bounds.high:+.4f}")
        )
        values = "".join(f"{'-' if v is None else f'{v:.4f}':>9}" for v in (one.first, one.second))
        lines.append(
            f"{one.name:<24}{values}{'-' if one.difference is None else f'{one.difference:+.4f}':>9}  {bounds}"
        )
    if found.p is not None:
        lines.append(f"permutation p of the mean IoU of an image: {found.p:.4f}")
    better = sum(second > first for _, first, second in found.images)
    worse = sum(second < first for _, first, second in found.images)
    lines.append(f"B is better on {better} images, worse on {worse}")
    for title, own in (("worse in B", found.images[:_SHOWN]), ("better in B", found.images[::-1][:_SHOWN])):
        lines.append(f"{title}:")
        lines += [f"  {name:<40} {first:.3f} -> {second:.3f}" for name, first, second in own]
    return lines
