"""gallery/: small pictures of telling images: the worst, median and best, those behind the confusion matrix, and those
with suspected label errors.

Per image NAME-input.jpg and, to be laid over it, NAME-truth.png, NAME-prediction.png and NAME-error.png, transparent
where there is nothing to show.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from segformer_spark.data.dataset import ClassInfo, Image, Mask
from segformer_spark.data.overlay import ignored_color
from segformer_spark.evaluation.pictures import WRONG
from segformer_spark.files.atomic import atomic_file, remove_file, write_json
from segformer_spark.metrics.image_counts import ImageCounts

LAYERS = ("truth", "prediction", "error")
GALLERY, INDEX = "gallery", "gallery.json"

_LONGEST = 384
_MOST_IMAGES, _PER_CELL = 60, 3


@dataclass(frozen=True)
class Chosen:
    """Images of a gallery.

    Attributes:
        groups: {worst, median, best, suspected label errors, confusion: positions, in order}.
        cells: {"truth,prediction": [(position, pixels), ...]} of ids, the images with most of these pixels.
    """

    groups: Mapping[str, list[int]]
    cells: Mapping[str, list[tuple[int, int]]]

    @property
    def positions(self) -> list[int]:
        """Every image once."""
        return list(dict.fromkeys(at for own in self.groups.values() for at in own))


def ranked(quality: NDArray[np.float64], number: int) -> dict[str, list[int]]:
    """The positions of the `number` worst, median and best images."""
    order = [int(at) for at in np.argsort(quality, kind="stable")]
    middle = max(0, (len(order) - number) // 2)
    return {"worst": order[:number], "median": order[middle : middle + number], "best": order[::-1][:number]}


def choose(counts: ImageCounts, quality: NDArray[np.float64], number: int, suspected: Sequence[int] = ()) -> Chosen:
    """The `number` worst, median, best and suspected images, and at most _MOST_IMAGES in all with those of confused
    classes."""
    groups = {**ranked(quality, number), "suspected label errors": list(suspected[:number])}
    taken = {at for own in groups.values() for at in own}
    cells: dict[str, list[tuple[int, int]]] = {}
    more: list[int] = []
    rows = counts.cells[(counts.cells[:, 1] != counts.cells[:, 2]) & (counts.cells[:, 1] < counts.num_classes)]
    pairs, sums = np.unique(rows[:, 1:3], axis=0, return_inverse=True) if len(rows) else (np.zeros((0, 2), int), [])
    for number_of_pair, (truth, predicted) in enumerate(pairs.tolist()):
        own = rows[np.asarray(sums).ravel() == number_of_pair]
        top = own[np.argsort(-own[:, 3], kind="stable")][:_PER_CELL]
        cells[f"{truth},{predicted}"] = [(int(at), int(pixels)) for at, _, _, pixels in top]
        for at in top[:, 0].tolist():
            if at not in taken and len(taken) < _MOST_IMAGES:
                taken.add(at)
                more.append(at)
    return Chosen({**groups, "confusion": more}, cells)


def clear_gallery(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation."""
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    remove_file(folder / INDEX)


class Gallery:
    """gallery/ and gallery.json of a folder, written image by image.

    Args:
        names, quality: of every image of the evaluation.
    """

    def __init__(
        self, folder: Path, chosen: Chosen, names: Sequence[str], quality: NDArray[np.float64], classes: ClassInfo
    ) -> None:
        self.folder, self.chosen, self.classes = folder, chosen, classes
        self._names, self._quality = names, quality
        self._files: dict[int, str] = {}

    def add(self, at: int, image: Image, truth: Mask, predicted: Mask) -> None:
        """Draw the image at this position, whose pixels and masks are turned as people see them."""
        self._files[at] = f"{at:06d}_{re.sub(r'[^A-Za-z0-9._-]', '_', self._names[at])[-80:]}"
        _draw(self.folder / GALLERY / self._files[at], image, truth, predicted, self.classes)

    def finish(self) -> None:
        """Write the index; all chosen images have been added."""
        record: dict[str, Any] = {
            "groups": dict(self.chosen.groups),
            "cells": self.chosen.cells,
            "images": {
                str(at): {"name": self._names[at], "file": self._files[at], "mean_iou": float(self._quality[at])}
                for at in self.chosen.positions
            },
        }
        write_json(self.folder / INDEX, record)


def _draw(stem: Path, image: Image, truth: Mask, predicted: Mask, classes: ClassInfo) -> None:
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = PIL.Image.fromarray(cv2.resize(image, size, interpolation=method))
    _save(stem.with_name(f"{stem.name}-input.jpg"), small, format="JPEG", quality=80)
    known = len(classes)
    colors = [*classes.colors, *[ignored_color(classes)] * (255 - known), (0, 0, 0)]
    wrong = np.where((truth != predicted) & (truth < known), 1, 0).astype(np.uint8)
    layers = {"truth": (truth, colors), "prediction": (predicted, colors), "error": (wrong, [(0, 0, 0), WRONG])}
    for name, (ids, palette) in layers.items():
        # Thin parts would vanish if one pixel of many were taken: of each cell the rarest class that is not background.
        shown = _shrunk(ids, size, 0 if name == "error" else classes.background)
        layer = PIL.Image.fromarray(shown, "P")
        layer.putpalette([channel for color in palette for channel in color])
        hidden = 0 if name == "error" else classes.background
        options = {} if hidden is None else {"transparency": int(hidden)}
        _save(stem.with_name(f"{stem.name}-{name}.png"), layer, format="PNG", optimize=True, **options)


def _shrunk(ids: Mask, size: tuple[int, int], background: int | None) -> Mask:
    """Class ids at (width, height) `size`; a class in a quarter of a cell covers background."""
    if (ids.shape[1], ids.shape[0]) == size:
        return ids
    shown = np.asarray(cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST))
    if background is None:
        return shown
    best = np.full(shown.shape, 0.25, np.float32)
    for index in np.unique(ids):
        if index != background:
            share = cv2.resize((ids == index).astype(np.float32), size, interpolation=cv2.INTER_AREA)
            takes = share >= best
            shown[takes], best[takes] = index, share[takes]
    return shown


def _save(path: Path, image: PIL.Image.Image, **options: Any) -> None:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    with atomic_file(path) as stream:
        stream.write(buffer.getvalue())
