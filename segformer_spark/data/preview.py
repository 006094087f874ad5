"""A contact sheet of what the model is fed: training samples after crop and augmentation, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import ClassInfo, Image, Sample, SegmentationDataset
from segformer_spark.data.loader import fed_sample
from segformer_spark.data.overlay import ignored_color, overlay
from segformer_spark.data.png import write_png
from segformer_spark.data.resize import resize_image
from segformer_spark.data.sampler import epoch_order
from segformer_spark.data.transforms import TrainTransform

_TILE, _GAP, _CAPTION, _LEGEND = 224, 6, 18, 24
_COLUMNS = 3


def write_sheet(dataset: SegmentationDataset, config: Config, path: Path, *, num_images: int, epoch: int = 0) -> None:
    """Write the first samples of an epoch, each as it is fed and with its mask over it.

    Raises:
        DataError: a sample cannot be read, or the crop does not fit.
    """
    transform = TrainTransform.of(config, dataset.classes.names)
    order = epoch_order(len(dataset), config.experiment.seed, epoch)[:num_images]
    fed = [(dataset.sample_id(int(index)), fed_sample(dataset, transform, epoch, int(index))) for index in order]
    write_samples(fed, dataset.classes, path)


def write_samples(samples: Sequence[tuple[str, Sample]], classes: ClassInfo, path: Path) -> None:
    """Write a contact sheet of samples with their captions."""
    cells = [_cell(sample, classes, caption) for caption, sample in samples]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[start : start + _COLUMNS]) for start in range(0, len(cells), _COLUMNS)]
    write_png(path, np.vstack([_legend(classes, rows[0].shape[1]), *rows]))


def _cell(sample: Sample, classes: ClassInfo, name: str) -> Image:
    tiles = [sample.image, overlay(sample.image, sample.mask, classes)]
    small = [resize_image(tile, (_TILE, _TILE)) for tile in tiles]
    cell = np.full((_TILE + _CAPTION + _GAP, 2 * _TILE + 2 * _GAP, 3), 255, np.uint8)
    cell[_CAPTION : _CAPTION + _TILE, :_TILE] = small[0]
    cell[_CAPTION : _CAPTION + _TILE, _TILE + 2 : 2 * _TILE + 2] = small[1]
    _write(cell, name[:60], 2, 13)
    return cell


def _legend(classes: ClassInfo, width: int) -> Image:
    """Class colours and names, on as many lines as they need, and what does not count."""
    entries = [*zip(classes.names, classes.colors, strict=True), ("ignored", ignored_color(classes))]
    positions, x, line = [], 4, 0
    for name, _ in entries:
        needed = 26 + 8 * len(name)
        if x + needed > width and x > 4:
            x, line = 4, line + 1
        positions.append((x, line))
        x += needed
    strip = np.full((_LEGEND * (line + 1), width, 3), 255, np.uint8)
    for (name, color), (left, row) in zip(entries, positions, strict=True):
        top = row * _LEGEND
        cv2.rectangle(strip, (left, top + 5), (left + 12, top + 17), color, cv2.FILLED)
        cv2.rectangle(strip, (left, top + 5), (left + 12, top + 17), (90, 90, 90), 1)
        _write(strip, name, left + 17, top + 16)
    return strip


def _write(picture: Image, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
