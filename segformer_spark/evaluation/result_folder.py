"""The folder of an evaluation: counts, metrics, tables, figures and SHA256SUMS over all of them.

counts.npz and images.json are what was counted; results.json, per_image.csv and confusion.csv follow from them, and
`verify` computes them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.partition import bootstrap_groups
from segformer_spark.errors import DataError
from segformer_spark.evaluation.pictures import draw_categories, draw_confusion, draw_reliability
from segformer_spark.files.atomic import atomic_file, remove_file, write_csv, write_json
from segformer_spark.files.checksums import CHECKSUMS, write_checksums
from segformer_spark.files.json_file import read_json_object
from segformer_spark.metrics.detailed import Description, detailed_report
from segformer_spark.metrics.image_counts import ImageCounts, read_image_counts
from segformer_spark.metrics.names import is_spark
from segformer_spark.metrics.spark_score import counts_for_panels, image_iou

COUNTS, IMAGES, RESULTS = "counts.npz", "images.json", "results.json"
REPORT, REPORT_TEXT, REPORT_DIGEST = "report.html", "report.md", "report.html.sha256"
OUTSIDE = (REPORT, REPORT_DIGEST, REPORT_TEXT)
"""Reports show the digest of SHA256SUMS: they are not in there; report.html has a digest of its own."""

PER_IMAGE, CONFUSION = "per_image.csv", "confusion.csv"

_MOST_NAMED = 4

Floats = NDArray[np.float64]
Tables = dict[str, tuple[list[str], list[dict[str, Any]]]]


def describe_images(dataset: SegmentationDataset, class_names: tuple[str, ...], group_by: str | None) -> Description:
    """Names, categories and groups of all images of a data set.

    Raises:
        UserError: `group_by` is no rule, or has no group for some image.
    """
    groups, grouping = bootstrap_groups(dataset, group_by)
    numbers = range(len(dataset))
    return Description(
        class_names,
        dataset.classes.background,
        tuple(dataset.classes.colors),
        tuple(dataset.categories),
        tuple(dataset.sample_id(index) for index in numbers),
        tuple(dataset.category(index) for index in numbers),
        tuple(groups),
        grouping,
    )


def write_results(folder: Path, counts: ImageCounts, of: Description, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write counts, metrics, tables and figures; returns the metrics. `write_checksums` comes last."""
    for stale in (*OUTSIDE, CHECKSUMS, "figures/calibration.png"):
        remove_file(folder / stale)
    metrics = detailed_report(counts, of)
    with atomic_file(folder / COUNTS) as stream:
        stream.write(counts.to_bytes())
    write_json(folder / IMAGES, asdict(of))
    for name, (columns, rows) in tables(counts, of, metrics).items():
        write_csv(folder / name, columns, rows)
    draw_confusion(np.asarray(metrics["confusion"]), of.class_names, folder / "figures" / "confusion.png")
    draw_categories(metrics, of.colors, folder / "figures" / "scores.png")
    if metrics["calibration"] is not None:
        draw_reliability(metrics["calibration"], folder / "figures" / "calibration.png")
    write_json(folder / RESULTS, {**metrics, "record": record})
    return metrics


def seal(folder: Path) -> str:
    """Write SHA256SUMS over everything in the folder but the report, which shows its digest; returns that."""
    return write_checksums(folder, OUTSIDE)


def read_counted(folder: Path) -> tuple[ImageCounts, Description]:
    """What an evaluation counted.

    Raises:
        DataError: files are missing or damaged, or do not belong together.
    """
    counts = read_image_counts(folder / COUNTS)
    path = folder / IMAGES
    raw = read_json_object(path)
    names = {one.name for one in fields(Description)}
    if set(raw) != names:
        raise DataError(f"{path}: expected the keys {', '.join(sorted(names))}")
    lists = ("class_names", "colors", "categories", "names", "category", "group")
    if any(not isinstance(raw[name], list) for name in lists):
        raise DataError(f"{path}: {', '.join(lists)} are lists")
    plain: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in raw.items()}
    of = Description(**plain)
    numbers = {len(of.names), len(of.category), len(of.group), len(counts)}
    inside = all(isinstance(c, int) and 0 <= c < max(1, len(of.categories)) for c in of.category)
    if len(numbers) != 1 or len(of.class_names) != counts.num_classes or not inside:
        raise DataError(f"{path} and {folder / COUNTS} are of different images or classes")
    return counts, of


def tables(counts: ImageCounts, of: Description, metrics: Mapping[str, Any]) -> Tables:
    """{file: (columns, rows)} of per_image.csv and confusion.csv."""
    names = of.class_names
    per_image = counts.per_image
    iou = image_iou(per_image, empty=np.nan)
    counted = None
    if is_spark(names):
        counted = counts_for_panels(per_image[:, names.index("body")], per_image[:, names.index("panels")])
    rows = []
    for index, image in enumerate(of.names):
        row: dict[str, Any] = {"image": image}
        if of.categories:
            row["category"] = of.categories[of.category[index]]
        row |= {f"iou_{name}": _decimal(iou[index, c]) for c, name in enumerate(names)}
        row |= {f"true_pixels_{name}": int(per_image[index, c, 1]) for c, name in enumerate(names)}
        if counted is not None:
            row["counts_for_panels"] = int(counted[index])
        rows.append(row)
    matrix = [
        {"truth": name, **dict(zip(names, values, strict=True))}
        for name, values in zip(names, metrics["confusion"], strict=True)
    ]
    return {PER_IMAGE: (list(rows[0]), rows), CONFUSION: (["truth", *names], matrix)}


def foreground_iou(counts: ImageCounts, of: Description) -> Floats:
    """Mean IoU (N,) of each image over the foreground classes that it or its prediction has; 1 where there are none."""
    iou = image_iou(counts.per_image, empty=np.nan)
    foreground = [c for c in range(iou.shape[1]) if c != of.background]
    present = ~np.isnan(iou[:, foreground])
    quality = np.where(present, iou[:, foreground], 0).sum(1) / np.maximum(present.sum(1), 1)
    quality[~present.any(1)] = 1.0
    return np.asarray(quality)


def picture_titles(counts: ImageCounts, of: Description, quality: Floats) -> list[str]:
    """Name, mean IoU and, of few classes, the IoU of each, of every image."""
    iou = image_iou(counts.per_image, empty=np.nan)
    shown = [c for c in range(len(of.class_names)) if c != of.background]
    titles = []
    for name, mean, own in zip(of.names, quality, iou, strict=True):
        classes = [f"{of.class_names[c]} {own[c]:.2f}" for c in shown if not np.isnan(own[c])]
        more = f" ({', '.join(classes)})" if 1 < len(shown) <= _MOST_NAMED else ""
        titles.append(f"{name}  mean IoU {mean:.3f}{more}")
    return titles


def _decimal(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
