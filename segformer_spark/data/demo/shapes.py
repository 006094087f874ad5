"""Ten spacecraft as convex faces: boxes, prisms, dishes (body) and flat wings (panels)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

BODY, PANEL = 1, 2


@dataclass(frozen=True)
class Face:
    """A flat convex polygon: `points` (N, 3), class id, base colour RGB in 0..1, and a grid of cells drawn on it."""

    points: Points
    label: int
    color: tuple[float, float, float]
    cells: tuple[int, int] = (0, 0)


_GOLD, _GREY, _WHITE, _DARK = (0.85, 0.62, 0.25), (0.55, 0.56, 0.58), (0.88, 0.88, 0.86), (0.28, 0.28, 0.3)
_CELL_BLUE, _CELL_VIOLET = (0.12, 0.18, 0.45), (0.22, 0.16, 0.36)


def box(
    size: tuple[float, float, float], center: tuple[float, float, float], color: tuple[float, float, float]
) -> list[Face]:
    """The six faces of an axis-parallel box, counter-clockwise from outside."""
    half, middle = np.array(size) / 2, np.array(center)
    faces = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for sign in (-1.0, 1.0):
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, u] = [-1, sign, 1, -sign] if sign > 0 else [-1, -1, 1, 1]
            corners[:, v] = [-1, -1, 1, 1] if sign > 0 else [-1, 1, 1, -1]
            if sign > 0:
                corners[:, u] = [-1, 1, 1, -1]
            faces.append(Face(corners * half + middle, BODY, color))
    return faces


def prism(
    radius: float, length: float, center: tuple[float, float, float], color: tuple[float, float, float], sides: int = 10
) -> list[Face]:
    """An upright prism along z, as a stand-in for a cylinder."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(sides)], 1) + np.array(center)
    offset = np.array([0, 0, length / 2])
    top, bottom = ring + offset, ring - offset
    walls = [
        Face(np.stack([bottom[i], bottom[(i + 1) % sides], top[(i + 1) % sides], top[i]]), BODY, color)
        for i in range(sides)
    ]
    return [*walls, Face(top, BODY, color), Face(bottom[::-1], BODY, color)]


def dish(
    radius: float, center: tuple[float, float, float], color: tuple[float, float, float], sides: int = 14
) -> list[Face]:
    """A shallow cone open to +z, both of its sides visible."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    apex = np.array(center)
    rim = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(sides, 0.35 * radius)], 1) + apex
    return [Face(np.stack([apex, rim[i], rim[(i + 1) % sides]]), BODY, color) for i in range(sides)]


def wing(
    span: float,
    width: float,
    start: tuple[float, float, float],
    direction: tuple[float, float],
    color: tuple[float, float, float] = _CELL_BLUE,
    segments: int = 3,
    tilt: float = 0.0,
) -> list[Face]:
    """A panel wing of `segments` plates beginning at `start` along `direction` in the x-y plane, turned by `tilt`."""
    along = np.array([*direction, 0.0]) / np.hypot(*direction)
    across = np.array([-along[1] * np.sin(tilt), along[0] * np.sin(tilt), np.cos(tilt)])
    plate, gap = span / segments, 0.04 * span / segments
    faces = []
    for index in range(segments):
        near = np.array(start) + along * (index * plate + gap)
        far = near + along * (plate - gap)
        half = across * width / 2
        corners = np.stack([near - half, far - half, far + half, near + half])
        faces.append(Face(corners, PANEL, color, cells=(5, 8)))
    return faces


def _two_wings(
    span: float,
    width: float,
    from_center: float,
    *,
    color: tuple[float, float, float] = _CELL_BLUE,
    segments: int = 3,
    tilt: float = 0.0,
    height: float = 0.0,
) -> list[Face]:
    right = wing(span, width, (from_center, 0.0, height), (1.0, 0.0), color, segments, tilt)
    left = wing(span, width, (-from_center, 0.0, height), (-1.0, 0.0), color, segments, -tilt)
    return right + left


def _body_panel(size: tuple[float, float], z: float, color: tuple[float, float, float] = _CELL_BLUE) -> list[Face]:
    x, y = size[0] / 2, size[1] / 2
    return [Face(np.array([[-x, -y, z], [x, -y, z], [x, y, z], [-x, y, z]]), PANEL, color, cells=(6, 6))]


SHAPES: dict[str, Callable[[], list[Face]]] = {
    "VenusExpress": lambda: (
        box((1.0, 0.9, 1.1), (0, 0, 0), _GOLD)
        + _two_wings(1.6, 0.8, 0.55, segments=2)
        + dish(0.5, (0, 0, 0.58), _WHITE)
    ),
    "Cheops": lambda: (
        prism(0.6, 0.7, (0, 0, -0.15), _GOLD, sides=6)
        + prism(0.28, 0.6, (0, 0, 0.5), _WHITE)
        + wing(0.8, 1.0, (0.55, -0.3, -0.1), (0.2, -1.0), segments=1, tilt=0.2)
        + wing(0.8, 1.0, (-0.55, -0.3, -0.1), (-0.2, -1.0), segments=1, tilt=-0.2)
    ),
    "LisaPathfinder": lambda: prism(1.0, 0.5, (0, 0, 0), _GOLD, sides=8) + _body_panel((1.35, 1.35), 0.262),
    "ObservationSat1": lambda: (
        box((0.7, 0.7, 1.4), (0, 0, 0), _GREY)
        + _two_wings(1.9, 0.55, 0.4, segments=4, color=_CELL_VIOLET)
        + prism(0.2, 0.4, (0, 0, -0.9), _DARK)
    ),
    "Proba2": lambda: (
        box((0.8, 0.8, 0.9), (0, 0, 0), _GREY)
        + _two_wings(0.75, 0.75, 0.42, segments=1, height=0.2)
        + box((0.2, 0.2, 0.3), (0.2, 0.1, 0.55), _WHITE)
    ),
    "Proba3": lambda: (
        box((1.1, 0.9, 1.0), (0, 0, 0), _DARK)
        + wing(1.2, 0.9, (0.58, 0, 0.1), (1.0, 0.0), segments=2)
        + prism(0.15, 0.5, (-0.3, 0, 0.7), _WHITE)
    ),
    "Proba3ocs": lambda: (
        prism(0.8, 0.35, (0, 0, 0), _DARK, sides=16)
        + box((0.6, 0.6, 0.6), (0, 0, -0.4), _GOLD)
        + _body_panel((0.7, 0.7), -0.71)
    ),
    "Smart1": lambda: box((0.75, 0.75, 0.75), (0, 0, 0), _GOLD) + _two_wings(2.6, 0.6, 0.42, segments=3, tilt=0.3),
    "Soho": lambda: (
        box((0.9, 0.9, 1.3), (0, 0, 0), _WHITE)
        + _two_wings(1.3, 0.9, 0.5, segments=2, height=-0.45)
        + prism(0.3, 0.5, (0.1, 0.1, 0.85), _GREY)
    ),
    "XMM Newton": lambda: (
        prism(0.45, 2.4, (0, 0, 0), _GREY, sides=12)
        + box((1.0, 1.0, 0.5), (0, 0, -1.0), _GOLD)
        + _two_wings(1.4, 0.7, 0.52, segments=2, height=-1.0)
        + dish(0.25, (0, 0, 1.25), _WHITE)
    ),
}
