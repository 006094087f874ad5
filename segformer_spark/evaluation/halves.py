"""Half A, on which something is chosen, and half B, on which it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.partition import bootstrap_groups, cut
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


def cut_in_halves(dataset: SegmentationDataset, group_by: str | None) -> Halves:
    """Two halves (`data.partition.cut`) that have no bootstrap group in common.

    Raises:
        UserError: fewer than two groups, or fewer than four images.
    """
    groups, drawn = bootstrap_groups(dataset, group_by)
    if len(dataset) < 4:
        raise UserError(f"{len(dataset)} images are too few to choose on one half and judge on the other; 4 are needed")
    part, rule = cut(dataset, 2, group_by, units=groups)
    if drawn == "blocks of neighbouring frames":
        rule += f", {drawn}"
    return Halves(np.flatnonzero(part == 0), np.flatnonzero(part == 1), groups, rule)
