"""What an evaluation keeps of every image: counts, from which all of its metrics follow.

Written as counts.npz: numbers only, read without pickle.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer_spark.errors import DataError
from segformer_spark.files.regular_file import open_regular
from segformer_spark.metrics.boundary import boundary_counts, boundary_width
from segformer_spark.metrics.calibration import BINS, calibration_counts
from segformer_spark.metrics.confusion import EvaluationCounts, joint_counts, overlaps
from segformer_spark.metrics.parts import PARTS
from segformer_spark.metrics.surface import Spacing, match_edges

WIDTHS = (2, 5)
"""Widths of boundary regions in pixels, beside the paper's share of the diagonal."""

TOLERANCES = (1.0, 2.0, 5.0)
"""Of edges, in the unit of the pixel spacing."""

PREDICTED_EDGE, TRUE_EDGE = 0, 1

SPARSE = ("cells", "alternative")

Ints = NDArray[np.int64]


@dataclass
class ImageCounts:
    """Counts of N images and C classes.

    Attributes:
        index: (N,) positions in the data set, ascending.
        size: (N, 2) height and width.
        cells: (M, 4) rows (position in `index`, truth, prediction, pixels) without empty ones; truth C is no label.
        alternative: (M', 5) rows (position, part, truth, prediction, pixels) of the decision that the missing points
            are split by (`metrics.parts`); part 0 is right.
        boundary: (N, C, W, 3) predicted, true and overlapping pixels of boundary regions, of WIDTHS and the paper's.
        edges: (N, C, 1 + T, 2) pixels of the predicted and the true edge, then those within each of TOLERANCES.
        hd95: float64 (N, C), nan where an edge is empty.
        calibration: (N, BINS, 3) of `metrics.calibration`; zeros where no confidence is known.
    """

    index: Ints
    size: Ints
    cells: Ints
    alternative: Ints
    boundary: Ints
    edges: Ints
    hd95: NDArray[np.float64]
    calibration: Ints

    @property
    def num_classes(self) -> int:
        return int(self.boundary.shape[1])

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Ints) -> ImageCounts:
        """The images at these positions, in this order."""
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        sparse: dict[str, Any] = {name: _moved(getattr(self, name), place) for name in SPARSE}
        return ImageCounts(**sparse, **{name: getattr(self, name)[rows] for name in _arrays()})

    def _dense(self) -> Ints:
        """(N, C + 1, C), rows truth; the last is no label."""
        dense = np.zeros((len(self), self.num_classes + 1, self.num_classes), np.int64)
        np.add.at(dense, (self.cells[:, 0], self.cells[:, 1], self.cells[:, 2]), self.cells[:, 3])
        return dense

    @property
    def per_image(self) -> Ints:
        """(N, C, 3): predicted, true and overlapping pixels."""
        return overlaps(self._dense()[:, :-1])

    def evaluation_counts(self, category_of_image: Sequence[int], num_categories: int) -> EvaluationCounts:
        """The sums that metrics are computed from."""
        classes, dense = self.num_classes, self._dense()
        known = dense[:, :classes]
        number = max(num_categories, 1)
        confusion, ignored = np.zeros((number, classes, classes), np.int64), np.zeros((number, classes), np.int64)
        np.add.at(confusion, np.asarray(category_of_image), known)
        np.add.at(ignored, np.asarray(category_of_image), dense[:, classes])
        seen = np.ones(len(self), np.int64)
        return EvaluationCounts(*(torch.from_numpy(one) for one in (confusion, overlaps(known), seen, ignored)))

    def to_bytes(self) -> bytes:
        """The contents of counts.npz, the same for the same counts."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{one.name: getattr(self, one.name) for one in fields(self)})
        return buffer.getvalue()


def read_image_counts(path: Path) -> ImageCounts:
    """counts.npz.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    names = [one.name for one in fields(ImageCounts)]
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
            if sorted(archive.files) != sorted(names):
                raise DataError(f"{path}: holds {', '.join(archive.files)}; expected {', '.join(names)}")
            found = ImageCounts(**{name: archive[name] for name in names})
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    _refuse_unlikely(found, path)
    return found


def _refuse_unlikely(counts: ImageCounts, path: Path) -> None:
    number = len(counts.index) if counts.index.ndim == 1 else -1
    classes = counts.boundary.shape[1] if counts.boundary.ndim == 4 else -1
    shapes: dict[str, tuple[int, ...]] = {
        "index": (number,),
        "size": (number, 2),
        "boundary": (number, classes, len(WIDTHS) + 1, 3),
        "edges": (number, classes, 1 + len(TOLERANCES), 2),
        "hd95": (number, classes),
        "calibration": (number, BINS, 3),
        "cells": (len(counts.cells), 4),
        "alternative": (len(counts.alternative), 5),
    }
    for name, shape in shapes.items():
        value = getattr(counts, name)
        kind = "f" if name == "hd95" else "i"
        if value.shape != shape or value.dtype.kind != kind:
            raise DataError(f"{path}: {name} has shape {value.shape} and type {value.dtype}")
        if kind == "i" and value.size and int(value.min()) < 0:
            raise DataError(f"{path}: {name} has counts below 0")
    if (np.diff(counts.index) <= 0).any():
        raise DataError(f"{path}: index does not ascend")
    cells = counts.cells
    if len(cells) and (cells[:, :3].max(0) >= (number, classes + 1, classes)).any():
        raise DataError(f"{path}: cells name images or classes that there are not")
    rows = counts.alternative
    if len(rows) and (rows[:, :4].max(0) >= (number, len(PARTS) + 1, classes, classes)).any():
        raise DataError(f"{path}: alternative names images, parts or classes that there are not")


def count_image(
    index: int,
    prediction: Tensor,
    truth: Tensor,
    num_classes: int,
    ignore_index: int,
    confidence: Tensor | None = None,
    spacing: Spacing = (1.0, 1.0),
    alternative: Ints | None = None,
) -> ImageCounts:
    """Counts of one image from class ids (H, W), and how probable each is (H, W).

    Args:
        alternative: rows (part, truth, prediction, pixels); None: those of the prediction, without parts.
    """
    joint = joint_counts(prediction, truth, num_classes, ignore_index).cpu().numpy()
    rows, columns = np.nonzero(joint)
    cells = np.stack([np.zeros_like(rows), rows, columns, joint[rows, columns]], -1)
    size = (int(truth.shape[0]), int(truth.shape[1]))
    known = truth != ignore_index
    bins = torch.zeros(BINS, 3, dtype=torch.int64)
    if confidence is not None:
        bins = calibration_counts(confidence[known], (prediction == truth)[known]).cpu()
    ids, labels = prediction.cpu().numpy(), truth.cpu().numpy()
    void = (labels == ignore_index).astype(np.uint8)
    widths = (*WIDTHS, boundary_width(size))
    boundary = np.zeros((num_classes, len(widths), 3), np.int64)
    edges = np.zeros((num_classes, 1 + len(TOLERANCES), 2), np.int64)
    hd95 = np.full(num_classes, np.nan)
    occurring = np.flatnonzero(joint[:num_classes].sum(0) + joint[:num_classes].sum(1))
    for c in occurring:
        first = ((ids == c) & (void == 0)).astype(np.uint8)
        second = (labels == c).astype(np.uint8)
        boundary[c] = [boundary_counts(first, second, width) for width in widths]
        match = match_edges(first, second, TOLERANCES, spacing, void)
        edges[c] = [(match.predicted, match.true), *match.matched]
        hd95[c] = match.hd95
    return ImageCounts(
        np.array([index]),
        np.array([size]),
        cells,
        _alternative(cells, alternative, num_classes),
        boundary[None],
        edges[None],
        hd95[None],
        bins.numpy()[None],
    )


def _alternative(cells: Ints, rows: Ints | None, num_classes: int) -> Ints:
    if rows is None:
        known = cells[cells[:, 1] < num_classes]
        part = np.where(known[:, 1] == known[:, 2], 0, len(PARTS))
        return np.stack([known[:, 0], part, known[:, 1], known[:, 2], known[:, 3]], -1)
    return np.concatenate([np.zeros((len(rows), 1), np.int64), rows], 1)


def _moved(rows: Ints, place: Ints) -> Ints:
    """Sparse rows of the images that stay, in their new order."""
    kept = rows[place[rows[:, 0]] >= 0].copy()
    kept[:, 0] = place[kept[:, 0]]
    return np.asarray(kept[np.lexsort(kept[:, -2::-1].T)])


def join_counts(parts: Sequence[ImageCounts]) -> ImageCounts:
    """Counts of several sets of images, in the order of their positions.

    Raises:
        ValueError: an image is in two of them.
    """
    sparse: dict[str, list[Ints]] = {name: [] for name in SPARSE}
    offset = 0
    for one in parts:
        for name, moved in sparse.items():
            rows = getattr(one, name).copy()
            rows[:, 0] += offset
            moved.append(rows)
        offset += len(one)
    joined: dict[str, Any] = {name: np.concatenate(rows) for name, rows in sparse.items()}
    whole = ImageCounts(**joined, **{name: np.concatenate([getattr(one, name) for one in parts]) for name in _arrays()})
    if len(np.unique(whole.index)) != len(whole):
        raise ValueError("an image was counted twice")
    return whole.take(np.argsort(whole.index, kind="stable"))


def _arrays() -> list[str]:
    return [one.name for one in fields(ImageCounts) if one.name not in SPARSE]
