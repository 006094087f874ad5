"""Evaluations without a model: of predictions made elsewhere, and of parts that are joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segformer_spark.config.data_schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError, UserError
from segformer_spark.evaluation.predictions_elsewhere import decode_prediction, open_predictions
from segformer_spark.evaluation.result_folder import OUTSIDE, describe_images, read_counted, seal, write_results
from segformer_spark.evaluation.text_table import text_table
from segformer_spark.files.checksums import check_checksums
from segformer_spark.files.json_file import read_json_object
from segformer_spark.metrics.detailed import Description
from segformer_spark.metrics.image_counts import ImageCounts, count_image, join_counts
from segformer_spark.metrics.surface import Spacing
from segformer_spark.run.console import logger, progress
from segformer_spark.run.lease import Owner, lease_results
from segformer_spark.run.record import result_record


def score_predictions(
    predictions: Path,
    data: DataConfig,
    split: str,
    output: Path,
    group_by: str | None = None,
    spacing: Spacing = (1.0, 1.0),
) -> dict[str, Any]:
    """Score masks that lie in files, with all metrics but calibration.

    Raises:
        UserError: data set or predictions cannot be read, or do not belong together; the file is named.
    """
    dataset = open_dataset(data, split)
    names = tuple(dataset.classes.names)
    of = describe_images(dataset, names, group_by)
    parts: list[ImageCounts] = []
    with open_predictions(predictions, dataset) as files:
        for index in progress(range(len(dataset)), total=len(dataset), label=f"scoring {split}"):
            sample = dataset.load(index)
            member = files.members[of.names[index]]
            size = (sample.mask.shape[0], sample.mask.shape[1])
            ids = torch.from_numpy(decode_prediction(files.read(member), member, dataset.classes, size))
            truth = torch.from_numpy(np.ascontiguousarray(sample.mask))
            parts.append(count_image(index, ids, truth, len(names), IGNORE_INDEX, None, spacing))
    record = result_record(
        torch.device("cpu"),
        dataset=data.dataset,
        split=split,
        predictions=str(predictions),
        resolution="native",
        spacing=list(spacing),
    )
    return _written(output, join_counts(parts), of, record)


def merge_evaluations(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Join evaluations of different images into one: shards of a split, or the folds of a cross-validation.

    Raises:
        UserError: a folder is damaged or unfinished, classes differ, or an image is in two of them.
    """
    found: list[tuple[ImageCounts, Description]] = []
    for folder in folders:
        faults = check_checksums(folder, OUTSIDE)
        if faults:
            raise DataError(f"{folder}: {len(faults)} files are not as they were written, first {faults[0]}")
        found.append(read_counted(folder))
    first = found[0][1]
    for folder, (_, of) in zip(folders, found, strict=True):
        if (of.class_names, of.background) != (first.class_names, first.background):
            raise UserError(
                f"{folder}: has the classes {', '.join(of.class_names)}, {folders[0]} has "
                f"{', '.join(first.class_names)}: they cannot be joined"
            )
    seen: dict[tuple[str, str], Path] = {}
    for folder, (_, of) in zip(folders, found, strict=True):
        for name, category in zip(of.names, of.category, strict=True):
            key = (of.categories[category] if of.categories else "", name)
            if key in seen:
                raise UserError(f"{folder} and {seen[key]} both evaluated {name}: images are counted once")
            seen[key] = folder
    counts, of = _joined(found)
    records = [read_json_object(folder / "results.json").get("record", {}) for folder in folders]
    units = {str(record.get("spacing")) for record in records}
    if len(units) > 1:
        raise UserError(f"the parts have pixels of different sizes: --spacing {' and '.join(sorted(units))}")
    merged = [{"folder": str(folder), "record": one} for folder, one in zip(folders, records, strict=True)]
    record = result_record(torch.device("cpu"), merged=merged)
    return _written(output, counts, of, record)


def _joined(found: Sequence[tuple[ImageCounts, Description]]) -> tuple[ImageCounts, Description]:
    """In the order of the data set where the positions tell it, as in shards; else one part after another."""
    positions = [int(index) for counts, _ in found for index in counts.index]
    counts = [one for one, _ in found]
    if len(set(positions)) != len(positions):
        offsets = np.cumsum([0, *(int(one.index.max(initial=-1)) + 1 for one in counts[:-1])])
        counts = [replace(one, index=one.index + offset) for one, offset in zip(counts, offsets, strict=True)]
        positions = [int(index) for one in counts for index in one.index]
    categories = tuple(dict.fromkeys(name for _, of in found for name in of.categories))
    names = [name for _, of in found for name in of.names]
    groups = [group for _, of in found for group in of.group]
    category = [categories.index(of.categories[c]) if of.categories else 0 for _, of in found for c in of.category]
    first = found[0][1]
    whole = replace(first, categories=categories, names=tuple(names), category=tuple(category), group=tuple(groups))
    order = [int(at) for at in np.argsort(positions, kind="stable")]
    return join_counts(counts), whole.take(order)


def _written(output: Path, counts: ImageCounts, of: Description, record: dict[str, Any]) -> dict[str, Any]:
    with lease_results(output, Owner.here(os.environ)):
        metrics = write_results(output, counts, of, record)
        digest = seal(output)
    for line in text_table(metrics):
        logger.info("%s", line)
    logger.info("results: %s, sha256 of its SHA256SUMS: %s", output, digest)
    return metrics
