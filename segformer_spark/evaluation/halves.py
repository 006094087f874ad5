"""Half A, on which something is chosen, and half B, on which it is judged; and what images are drawn together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.grouping import group_names
from segformer_spark.errors import UserError


@dataclass(frozen=True)
class Halves:
    """A cut of a data set in two.

    Attributes:
        chosen_on: indices of half A.
        judged_on: indices of half B.
        groups: of every image of the data set, what it is drawn with in a bootstrap.
        rule: how the images were cut, for people.
    """

    chosen_on: NDArray[np.int64]
    judged_on: NDArray[np.int64]
    groups: Sequence[str]
    rule: str


def bootstrap_groups(dataset: SegmentationDataset, group_by: str | None) -> tuple[list[str], str]:
    """What each image is drawn with, and that in words.

    Without `group_by`: frames of a drive in blocks of neighbours, as many as a block is long; other images alone.

    Raises:
        UserError: `group_by` is no rule, or has no group for some image.
    """
    names = [_name(dataset, index) for index in range(len(dataset))]
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


def cut_in_halves(dataset: SegmentationDataset, group_by: str | None) -> Halves:
    """Two halves that have no group in common.

    Images of several categories: every second of each. Frames of drives: the first and the last half of each drive.
    With `group_by`: whole groups.

    Raises:
        UserError: fewer than two groups, or fewer than two images.
    """
    groups, said = bootstrap_groups(dataset, group_by)
    number = len(dataset)
    if number < 4:
        raise UserError(f"{number} images are too few to choose on one half and judge on the other; 4 are needed")
    if group_by is not None:
        first, rule = _whole_groups(groups, group_by), f"whole {said}"
    elif dataset.categories or said == "images":
        strata = [dataset.category(index) for index in range(number)]
        first, rule = (
            _every_second(strata),
            "every second image of each category" if dataset.categories else ("every second image"),
        )
    else:
        drives = group_names([_name(dataset, index) for index in range(number)], "drive")
        first, rule = _first_half(drives, groups), f"the first and the last half of each drive, {said}"
    return Halves(np.flatnonzero(first), np.flatnonzero(~first), groups, rule)


def _name(dataset: SegmentationDataset, index: int) -> str:
    name = dataset.sample_id(index)
    return f"{dataset.categories[dataset.category(index)]}/{name}" if dataset.categories else name


def _are_frames(names: Sequence[str]) -> bool:
    sizes = Counter(group_names(names, "drive"))
    return len(sizes) * 4 <= len(names) and max(sizes.values()) > 1


def _every_second(strata: Sequence[int]) -> NDArray[np.bool_]:
    first = np.zeros(len(strata), np.bool_)
    first[np.argsort(strata, kind="stable")[::2]] = True
    return first


def _first_half(drives: Sequence[str], blocks: Sequence[str]) -> NDArray[np.bool_]:
    """Whole blocks of each drive, until half of its frames are reached."""
    sizes, seen = Counter(drives), Counter[str]()
    block_is_first: dict[str, bool] = {}
    for drive, block in zip(drives, blocks, strict=True):
        block_is_first.setdefault(block, seen[drive] * 2 < sizes[drive])
        seen[drive] += 1
    return np.array([block_is_first[block] for block in blocks])


def _whole_groups(groups: Sequence[str], group_by: str) -> NDArray[np.bool_]:
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise UserError(
            f"--group-by {group_by}: all {len(groups)} images are of one group, {groups[0]}, which cannot be halved",
            "Leave --group-by out: frames of one drive are then cut into blocks of neighbours.",
        )
    taken, total = set[str](), [0, 0]
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        side = int(total[0] > total[1])
        total[side] += size
        if side == 0:
            taken.add(group)
    return np.array([group in taken for group in groups])
