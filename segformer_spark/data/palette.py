"""Class colours that people with any colour vision tell apart.

The first eight are Okabe and Ito's (2008, "Color Universal Design"), black first, for the background. Further ones are
those of a grid of RGB colours that lie furthest from all before them, the distance being the smallest in CIE L*a*b*
under normal vision and simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Color

OKABE_ITO: tuple[Color, ...] = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

_GREY, _WHITE = (128, 128, 128), (255, 255, 255)
"""Pictures show ignored pixels in these."""

_LEVELS = (0, 36, 73, 109, 146, 182, 219, 255)
_VISIONS = (
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)
"""Linear RGB -> linear RGB as normal, protanopic, deuteranopic and tritanopic vision sees it."""


def distinct_colors(number: int, *, with_black: bool = True) -> tuple[Color, ...]:
    """`number` colours, always the same ones; `with_black`: the first is black, for a background."""
    start = 0 if with_black else 1
    return _all_colors(number + start)[start:]


@cache
def _all_colors(number: int) -> tuple[Color, ...]:
    chosen = list(OKABE_ITO[:number])
    if len(chosen) == number:
        return tuple(chosen)
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    seen = _as_seen(grid)
    distance = _distances(seen, _as_seen(np.asarray([*chosen, _GREY, _WHITE]))).min(1)
    while len(chosen) < number:
        best = int(distance.argmax())
        red, green, blue = (int(channel) for channel in grid[best])
        chosen.append((red, green, blue))
        distance = np.minimum(distance, _distances(seen, seen[:, best : best + 1])[:, 0])
    return tuple(chosen)


def smallest_distance(colors: Sequence[Color]) -> float:
    """The smallest distance of two of the colours in L*a*b* under any of the four visions."""
    seen = _as_seen(np.asarray(colors))
    distances = _distances(seen, seen)
    return float(distances[~np.eye(len(colors), dtype=bool)].min())


def _as_seen(colors: NDArray[np.integer]) -> NDArray[np.float64]:
    """sRGB (N, 3) of 0 to 255 -> L*a*b* (visions, N, 3)."""
    values = colors.astype(np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", np.asarray(_VISIONS), linear), 0, 1).astype(np.float32)
    gamma = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055).astype(np.float32)
    return np.asarray(cv2.cvtColor(gamma, cv2.COLOR_RGB2LAB), np.float64)


def _distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(visions, N, 3) and (visions, M, 3) -> the smallest distance over the visions (N, M)."""
    distances: NDArray[np.float64] = np.linalg.norm(one[:, :, None] - other[:, None], axis=-1).min(0)
    return distances
