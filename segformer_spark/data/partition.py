"""Cuts of a data set into parts that have little in common, and which images are drawn together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.grouping import group_names
from segformer_spark.errors import UserError


def bootstrap_groups(dataset: SegmentationDataset, group_by: str | None) -> tuple[list[str], str]:
    """What each image is drawn with, and that in words.

    Without `group_by`: frames of a drive in blocks of neighbours, as many as a block is long; other images alone.

    Raises:
        UserError: `group_by` is no rule, or has no group for some image.
    """
    names = _names(dataset)
    if group_by is not None:
        return group_names(names, group_by), f"groups by {group_by}"
    if dataset.categories or not _are_frames(names):
        return names, "images"
    blocks: list[str] = []
    drives = group_names(names, "drive")
    sizes, seen = Counter(drives), Counter[str]()
    for drive in drives:
        blocks.append(f"{drive} {seen[drive] // max(1, round(math.sqrt(sizes[drive])))}")
        seen[drive] += 1
    return blocks, "blocks of neighbouring frames"


def cut(
    dataset: SegmentationDataset, number: int, group_by: str | None, units: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], str]:
    """The part, from 0, of each image, and the rule in words. The same for the same names.

    Images of several categories: every n-th of each category. Frames of drives: the n-th stretch of each drive. Other
    images: every n-th. With `group_by`: whole groups, the largest first, each to the part that has the fewest images.

    Args:
        number: of parts.
        group_by: a rule of `data.grouping`.
        units: of each frame, what no cut through a drive divides; None: each frame is one.

    Raises:
        UserError: fewer groups or images than parts, or `group_by` is no rule.
    """
    names = _names(dataset)
    if len(names) < number:
        raise UserError(f"{len(names)} images cannot be cut into {number} parts")
    if group_by is not None:
        groups = group_names(names, group_by)
        if len(distinct := sorted(set(groups))) < number:
            raise UserError(
                f"groups by {group_by}: the {len(groups)} images are of fewer groups ({', '.join(distinct)}) "
                f"than the {number} parts that they shall be cut into",
                "Leave the grouping out: frames of one drive are then cut into stretches of neighbours.",
            )
        return _whole_groups(groups, number), f"whole groups by {group_by}"
    which = {2: "second", 3: "third"}.get(number, f"{number}th")
    if dataset.categories or not _are_frames(names):
        strata = [dataset.category(index) for index in range(len(names))]
        parts = np.empty(len(names), np.int64)
        parts[np.argsort(strata, kind="stable")] = np.arange(len(names)) % number
        return parts, f"every {which} image of each category" if dataset.categories else f"every {which} image"
    stretches = "the first and the last half" if number == 2 else f"{number} stretches"
    return _stretches(group_names(names, "drive"), units or names, number), f"{stretches} of each drive"


def _names(dataset: SegmentationDataset) -> list[str]:
    """Of each image, below the folder of its category."""
    ids = [dataset.sample_id(index) for index in range(len(dataset))]
    if not dataset.categories:
        return ids
    return [f"{dataset.categories[dataset.category(index)]}/{name}" for index, name in enumerate(ids)]


def _are_frames(names: Sequence[str]) -> bool:
    sizes = Counter(group_names(names, "drive"))
    return len(sizes) * 4 <= len(names) and max(sizes.values()) > 1


def _stretches(drives: Sequence[str], units: Sequence[str], number: int) -> NDArray[np.int64]:
    """A unit goes where its first frame lies."""
    sizes, seen = Counter(drives), Counter[str]()
    part_of_unit: dict[str, int] = {}
    for drive, unit in zip(drives, units, strict=True):
        part_of_unit.setdefault(unit, seen[drive] * number // sizes[drive])
        seen[drive] += 1
    return np.array([part_of_unit[unit] for unit in units], np.int64)


def _whole_groups(groups: Sequence[str], number: int) -> NDArray[np.int64]:
    totals, part_of_group = [0] * number, dict[str, int]()
    for group, size in sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0])):
        part_of_group[group] = totals.index(min(totals))
        totals[part_of_group[group]] += size
    return np.array([part_of_group[group] for group in groups], np.int64)
