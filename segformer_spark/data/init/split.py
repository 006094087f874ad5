"""A seeded split into train and val that keeps groups together and gives both the same classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segformer_spark.errors import UserError

_DRAWS = 400


def stratified_split(
    pixels: Sequence[Sequence[int]], groups: Sequence[str], val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of train and val: of 400 random divisions of the groups, the one whose val differs least.

    Differences are those of the share of images, of each class's pixels and of the images that have the class, from
    `val_fraction`; a class that one side lacks altogether counts most.

    Args:
        pixels: per class, of every image.
        groups: of every image; images of a group stay together.

    Raises:
        UserError: there is one group only.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise UserError(
            f"all {len(groups)} images belong to one group, {names[0]!r}, and a group is not divided",
            "Leave --group-by out, or give a rule that makes several groups.",
        )
    of_group = np.asarray([names.index(group) for group in groups])
    counts = np.asarray(pixels, np.float64)
    present = counts > 0
    columns = np.concatenate([np.ones((len(counts), 1)), counts, present], axis=1)
    per_group = np.stack([columns[of_group == index].sum(0) for index in range(len(names))])
    total = per_group.sum(0)
    rng = np.random.default_rng([seed, 0x5917])
    best, best_cost = np.zeros(len(names), bool), np.inf
    for _ in range(_DRAWS):
        in_val = _draw(rng, per_group[:, 0], val_fraction)
        cost = _cost(per_group, in_val, total, val_fraction)
        if cost < best_cost:
            best, best_cost = in_val, cost
    chosen = best[of_group]
    return [int(i) for i in np.flatnonzero(~chosen)], [int(i) for i in np.flatnonzero(chosen)]


def _draw(rng: np.random.Generator, images: NDArray[np.float64], val_fraction: float) -> NDArray[np.bool_]:
    """Random groups until val has its share of the images; never none, never all."""
    in_val, wanted, number = np.zeros(len(images), bool), val_fraction * images.sum(), 0.0
    for group in rng.permutation(len(images))[:-1]:
        if number and abs(number + images[group] - wanted) > abs(number - wanted):
            continue
        in_val[group] = True
        number += images[group]
    return in_val


def _cost(
    per_group: NDArray[np.float64], in_val: NDArray[np.bool_], total: NDArray[np.float64], val_fraction: float
) -> float:
    share = per_group[in_val].sum(0)[total > 0] / total[total > 0]
    missing = np.count_nonzero(share == 0) + np.count_nonzero(share == 1)
    return float(np.square(share / val_fraction - 1).sum() + 100 * missing)
