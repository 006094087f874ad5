"""Predictions of all models on the same images: Input | Truth | one column per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from segformer_spark.config.study import Study
from segformer_spark.data.dataset import Image, SegmentationDataset, Subset
from segformer_spark.data.loader import eval_loader
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.overlay import overlay
from segformer_spark.data.png import write_png
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.resize import resize_image
from segformer_spark.distributed.process_group import Group
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.study.collect import RunResult
from segformer_spark.study.comparison import by_candidate

_TILE, _GAP, _HEADER = 256, 4, 34
_NAME_LENGTH = 30


def draw_grids(study: Study, results: Sequence[RunResult], group: Group, folder: Path) -> list[Path]:
    """One PNG per data set: the first images of the split that is compared; each model with its first seed."""
    paths = []
    candidates = by_candidate(results)
    for data in dict.fromkeys(data for data, _ in candidates):
        own = {label: runs[0] for (name, label), runs in candidates.items() if name == data}
        first = next(iter(own.values()))
        split = next(iter(first.scores))
        dataset = open_dataset(first.config.data, split)
        shown = Subset(dataset, range(min(study.examples, len(dataset))))
        if len(shown) == 0:
            continue
        path = folder / f"predictions_{data}.png"
        write_png(path, _grid(shown, own, group))
        paths.append(path)
    return paths


def _grid(dataset: SegmentationDataset, models: Mapping[str, RunResult], group: Group) -> Image:
    columns: dict[str, list[Image]] = {"Input": [], "Truth": []}
    samples = [dataset.load(index) for index in range(len(dataset))]
    images = [turn_upright(sample.image, sample.orientation) for sample in samples]
    for image, sample in zip(images, samples, strict=True):
        columns["Input"].append(image)
        columns["Truth"].append(overlay(image, turn_upright(sample.mask, sample.orientation), dataset.classes))
    for label, result in models.items():
        session = Session.open(result.model, InferenceSettings(batch_size=1), group)
        items = eval_loader(dataset, list(range(len(dataset))), session.loading)
        pictures = {
            item.index: overlay(
                images[item.index], turn_upright(ids.cpu().numpy(), samples[item.index].orientation), dataset.classes
            )
            for item, ids in session.predictions(items)
        }
        columns[f"{label} {_percent(result.miou)}"] = [pictures[index] for index in range(len(dataset))]
    names = [dataset.sample_id(index) for index in range(len(dataset))]
    return join_grid(columns, names)


def join_grid(columns: Mapping[str, Sequence[Image]], row_names: Sequence[str]) -> Image:
    """Columns of pictures under their titles; each row is as high as its first picture asks at the tile's width."""
    rows = [np.full((_HEADER, len(columns) * (_TILE + _GAP), 3), 255, np.uint8)]
    for position, title in enumerate(columns):
        _write(rows[0], title[:_NAME_LENGTH], (position * (_TILE + _GAP) + 4, 22), (0, 0, 0))
    for index, name in enumerate(row_names):
        pictures = [column[index] for column in columns.values()]
        height = max(1, round(pictures[0].shape[0] * _TILE / pictures[0].shape[1]))
        row = np.full((height + _GAP, len(columns) * (_TILE + _GAP), 3), 255, np.uint8)
        for position, picture in enumerate(pictures):
            small = resize_image(picture, (height, _TILE))
            row[:height, position * (_TILE + _GAP) : position * (_TILE + _GAP) + _TILE] = small
        _write(row, name[:_NAME_LENGTH], (5, height - 6), (255, 255, 255))
        rows.append(row)
    return np.vstack(rows)


def _write(picture: Image, text: str, position: tuple[int, int], color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)


def _percent(miou: float | None) -> str:
    return "" if miou is None else f"{100 * miou:.1f}"
