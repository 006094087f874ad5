"""Renders a set exactly as StreetHazards lies on disk (data/readers/street_hazards.py).

Street scenes in perspective; in the test split some hold an object of no class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image, Mask
from segformer_spark.data.readers.street_hazards import ANOMALY_LABEL, STREET_HAZARDS_CLASSES
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import atomic_folder

_TOWNS = ("t1", "t2")
_PARTS = {"training": "train", "validation": "train", "test": "test"}
_WITH_ANOMALY = 3
"""Of four test images so many hold an anomaly."""

_LABEL = {name: STREET_HAZARDS_CLASSES.names.index(name) + 1 for name in STREET_HAZARDS_CLASSES.names}
_TINTS = {
    "unlabeled": (150, 190, 235),
    "building": (120, 100, 90),
    "fence": (150, 120, 80),
    "pedestrian": (190, 90, 80),
    "pole": (90, 90, 95),
    "road line": (225, 225, 215),
    "road": (75, 75, 80),
    "sidewalk": (165, 155, 150),
    "vegetation": (60, 115, 50),
    "car": (60, 80, 150),
    "traffic sign": (230, 200, 40),
}
_STRANGE_TINTS = ((255, 70, 200), (90, 255, 230), (255, 140, 0), (170, 60, 255))

Generator = np.random.Generator


def write_street_set(
    root: Path, *, numbers: tuple[int, int, int], size: tuple[int, int] = (96, 160), seed: int = 0
) -> None:
    """Render the set into `root`. The same arguments give the same bytes.

    Args:
        root: folder to create; must be absent or empty.
        numbers: images in training, validation and test.
        size: (height, width) in pixels.

    Raises:
        DataError: `root` holds files already.
    """
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root}: the folder is not empty; remove it or choose another one")
    with atomic_folder(root) as temporary:
        for part_number, ((folder, part), number) in enumerate(zip(_PARTS.items(), numbers, strict=True)):
            entries = []
            for index in range(number):
                rng = np.random.default_rng([seed, part_number, index])
                anomalous = folder == "test" and index % (_WITH_ANOMALY + 1) < _WITH_ANOMALY
                image, mask = render_street(size, rng, anomalous=anomalous)
                where = f"{folder}/{_TOWNS[index % len(_TOWNS)]}/{index}.png"
                entry = {"fpath_img": f"images/{where}", "fpath_segm": f"annotations/{where}"}
                _write_png(temporary / part / entry["fpath_img"], image[:, :, ::-1])
                _write_png(temporary / part / entry["fpath_segm"], mask)
                entries.append(entry)
            (temporary / part / f"{folder}.odgt").write_text(json.dumps(entries), encoding="utf-8")


def render_street(size: tuple[int, int], rng: Generator, *, anomalous: bool) -> tuple[Image, Mask]:
    """An RGB image (H, W, 3) and its labels as on disk: class plus one, ANOMALY_LABEL for the anomaly."""
    height, width = size
    scene = _Scene(height, width, rng)
    horizon = int(height * rng.uniform(0.35, 0.5))
    vanishing = int(width * rng.uniform(0.35, 0.65))
    scene.fill("sidewalk", [(0, horizon), (width, horizon), (width, height), (0, height)])
    left, right = -int(width * rng.uniform(0, 0.3)), int(width * rng.uniform(1.0, 1.3))
    scene.fill("road", [(vanishing - 3, horizon), (vanishing + 3, horizon), (right, height), (left, height)])
    for share in (0.33, 0.66):
        foot = int(left + share * (right - left))
        thick = max(1, width // 90)
        scene.fill(
            "road line",
            [(vanishing, horizon + 4), (vanishing + 1, horizon + 4), (foot + thick, height), (foot, height)],
        )
    for _ in range(int(rng.integers(3, 7))):
        scene.box(
            "building",
            int(rng.integers(0, width)),
            horizon + 1,
            width * rng.uniform(0.08, 0.2),
            height * rng.uniform(0.15, 0.4),
        )
    for _ in range(int(rng.integers(2, 6))):
        scene.disc("vegetation", (int(rng.integers(0, width)), horizon - 2), height * rng.uniform(0.05, 0.12))
    for _ in range(int(rng.integers(1, 4))):
        scene.car(horizon)
    for _ in range(int(rng.integers(1, 4))):
        scene.pole(horizon)
    for _ in range(int(rng.integers(0, 3))):
        foot = int(rng.uniform(horizon + 8, height))
        tall = 0.06 * height + 0.28 * (foot - horizon)
        scene.box("pedestrian", int(rng.integers(0, width)), foot, tall * 0.35, tall)
    if anomalous:
        scene.anomaly(horizon)
    return scene.finish()


class _Scene:
    """A picture and its labels, painted from back to front."""

    def __init__(self, height: int, width: int, rng: Generator) -> None:
        self.rng, self.height, self.width = rng, height, width
        sky = np.linspace(1.05, 0.85, height)[:, None, None] * self._tint("unlabeled")
        self.image: NDArray[np.float64] = np.broadcast_to(sky, (height, width, 3)).copy()
        self.mask: Mask = np.full((height, width), _LABEL["unlabeled"], np.uint8)

    def _tint(self, name: str) -> NDArray[np.float64]:
        return np.asarray(_TINTS[name]) * self.rng.uniform(0.8, 1.2) + self.rng.normal(0, 8, 3)

    def _paint(self, region: NDArray[np.uint8], label: int, tint: NDArray[np.float64]) -> None:
        inside = region > 0
        self.mask[inside] = label
        self.image[inside] = tint

    def _region(self) -> NDArray[np.uint8]:
        return np.zeros((self.height, self.width), np.uint8)

    def fill(self, name: str, corners: Sequence[tuple[float, float]]) -> None:
        """A polygon of one class."""
        region = cv2.fillPoly(self._region(), [np.asarray(corners, np.int32)], 1)
        self._paint(region, _LABEL[name], self._tint(name))

    def box(self, name: str, center: int, bottom: int, wide: float, high: float) -> None:
        """An upright box that stands at `bottom`."""
        left, right, top = center - wide / 2, center + wide / 2, bottom - high
        self.fill(name, [(left, top), (right, top), (right, bottom), (left, bottom)])

    def disc(self, name: str, center: tuple[int, int], radius: float) -> None:
        """A round thing."""
        region = cv2.circle(self._region(), center, max(2, round(radius)), 1, cv2.FILLED)
        self._paint(region, _LABEL[name], self._tint(name))

    def car(self, horizon: int) -> None:
        """A car on the road, larger the nearer it is."""
        bottom = int(self.rng.uniform(horizon + 6, self.height))
        wide = 0.08 * self.width + 0.35 * (bottom - horizon)
        center = int(self.rng.uniform(0.15, 0.85) * self.width)
        self.box("car", center, bottom, wide, wide * 0.45)
        self.box("car", center, bottom - int(wide * 0.42), wide * 0.6, wide * 0.25)

    def pole(self, horizon: int) -> None:
        """A pole, some with a sign."""
        bottom = int(self.rng.uniform(horizon + 2, self.height))
        high, center = 0.25 * self.height + 0.4 * (bottom - horizon), int(self.rng.integers(0, self.width))
        self.box("pole", center, bottom, max(2.0, self.width / 70), high)
        if self.rng.random() < 0.6:
            self.disc("traffic sign", (center, int(bottom - high)), max(2.0, self.width / 45))

    def anomaly(self, horizon: int) -> None:
        """An object of no class: an odd outline in a colour that nothing else has, with stripes."""
        rng = self.rng
        bottom = rng.uniform(horizon + 0.2 * (self.height - horizon), self.height - 2)
        radius = 0.05 * self.height + 0.22 * (bottom - horizon)
        center = np.array([rng.uniform(0.2, 0.8) * self.width, bottom - radius])
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        reach = radius * rng.uniform(0.5, 1.2, (9, 1))
        corners = center + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
        region = cv2.fillPoly(self._region(), [corners.astype(np.int32)], 1)
        tint = np.asarray(_STRANGE_TINTS[int(rng.integers(len(_STRANGE_TINTS)))], np.float64)
        self._paint(region, ANOMALY_LABEL, tint)
        stripes = (np.arange(self.width)[None] // max(2, self.width // 60)) % 2 == 0
        self.image[(region > 0) & stripes] *= 0.7

    def finish(self) -> tuple[Image, Mask]:
        """The picture with soft light and noise."""
        light = self.rng.uniform(0.8, 1.15) + 0.1 * np.sin(np.linspace(0, 3, self.width) + self.rng.uniform(0, 6))
        noisy = self.image * light[None, :, None] + self.rng.normal(0, 7, self.image.shape)
        return np.clip(cv2.GaussianBlur(noisy, (0, 0), 0.6), 0, 255).astype(np.uint8), self.mask


def _write_png(path: Path, pixels: Image | Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", pixels)
    path.write_bytes(encoded.tobytes())
