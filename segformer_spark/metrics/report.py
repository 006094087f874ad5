"""All metrics of an evaluation, overall and per category, from its counts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from segformer_spark.metrics.confusion import TRUTH, EvaluationCounts
from segformer_spark.metrics.names import is_spark
from segformer_spark.metrics.scores import summarize
from segformer_spark.metrics.spark_score import Counts, image_iou, spark_score

SIZE_EDGES = (0.0, 0.01, 0.03, 0.1, 1.01)
"""Borders of the shares of the image that objects take, for metrics by object size."""
NO_OBJECT = "no object"


def report(
    counts: EvaluationCounts,
    category_of_image: Sequence[int],
    *,
    class_names: Sequence[str],
    background: int | None,
    categories: Sequence[str],
) -> dict[str, Any]:
    """{"miou", ..., "spark_score", "categories": {name: the same}}, JSON-ready. Empty categories are left out."""
    confusion = counts.confusion.cpu().numpy()
    per_image = counts.per_image.cpu().numpy()
    ignored = counts.ignored.cpu().numpy()
    membership = np.asarray(category_of_image)

    def compute(matrix: Counts, images: Counts, void: Counts) -> dict[str, Any]:
        out = {"num_images": len(images), **summarize(matrix, class_names, background, void)}
        out["confusion"] = matrix.tolist()
        if is_spark(class_names):
            body, panels = class_names.index("body"), class_names.index("panels")
            score = asdict(spark_score(images[:, body], images[:, panels]))
            out |= {
                "spark_score": score["score"],
                "spark_score_body": score["body"],
                "spark_score_panels": score["panels"],
                "spark_num_panel_images": score["num_panel_images"],
            }
        return out

    total = compute(confusion.sum(0), per_image, ignored.sum(0))
    total["categories"] = {
        name: compute(confusion[index], per_image[membership == index], ignored[index])
        for index, name in enumerate(categories)
        if (membership == index).any()
    }
    if background is not None:
        total["object_sizes"] = by_object_size(per_image, class_names, background)
    return total


def by_object_size(per_image: Counts, class_names: Sequence[str], background: int) -> dict[str, Any]:
    """Figures of the images whose foreground takes a share of the image within each of the ranges SIZE_EDGES makes.

    Per range: number of images, mean of each foreground class's IoU over the images where truth or prediction has it,
    SPARK score where there is one. Images without an object have a range of their own.
    """
    truth = per_image[..., TRUTH]
    total = truth.sum(1)
    share = (total - truth[:, background]) / np.maximum(total, 1)
    iou = image_iou(per_image, empty=np.nan)
    ranges = {NO_OBJECT: share == 0}
    for low, high in itertools.pairwise(SIZE_EDGES):
        ranges[f"{100 * low:g}-{100 * min(high, 1):g} %"] = (share > 0) & (share >= low) & (share < high)
    out = {}
    for label, own in ranges.items():
        if not own.any():
            continue
        row: dict[str, Any] = {"num_images": int(own.sum())}
        for c, name in enumerate(class_names):
            if c != background:
                values = iou[own, c][~np.isnan(iou[own, c])]
                row[f"iou_{name}"] = float(values.mean()) if len(values) else None
        if is_spark(class_names):
            body, panels = class_names.index("body"), class_names.index("panels")
            row["spark_score"] = spark_score(per_image[own][:, body], per_image[own][:, panels]).score
        out[label] = row
    return out


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The defined top-level scalars and IoU per class, as flat names for logs and selection."""
    flat = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    for name, scores in metrics["per_class"].items():
        if scores["iou"] is not None:
            flat[f"iou_{name}"] = scores["iou"]
    return flat


def selection_value(metrics: dict[str, Any], metric: str) -> float | None:
    """The value that the best checkpoint is chosen by; None where it is undefined, as without a labelled pixel."""
    return scalar_metrics(metrics).get(metric)
