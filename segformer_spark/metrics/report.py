"""All figures of an evaluation, in all and per group, from its counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from segformer_spark.errors import ConfigError
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.metrics.scores import summarize
from segformer_spark.metrics.spark_score import spark_score


def report(
    counts: EvaluationCounts,
    group_of_image: Sequence[int],
    *,
    class_names: Sequence[str],
    background: int | None,
    groups: Sequence[str],
) -> dict[str, Any]:
    """{"miou", ..., "spark_score", "groups": {name: the same}}, JSON-ready. Groups without images are left out."""
    confusion = counts.confusion.cpu().numpy()
    per_image = counts.per_image.cpu().numpy()
    membership = np.asarray(group_of_image)

    def figures(
        matrix: np.ndarray[Any, np.dtype[np.int64]], images: np.ndarray[Any, np.dtype[np.int64]]
    ) -> dict[str, Any]:
        out = {"num_images": len(images), **summarize(matrix, class_names, background)}
        if {"body", "panels"} <= set(class_names):
            body, panels = class_names.index("body"), class_names.index("panels")
            score = asdict(spark_score(images[:, body], images[:, panels]))
            out |= {
                "spark_score": score["score"],
                "spark_score_body": score["body"],
                "spark_score_panels": score["panels"],
                "spark_num_panel_images": score["num_panel_images"],
            }
        return out

    total = figures(confusion.sum(0), per_image)
    total["confusion"] = confusion.sum(0).tolist()
    total["groups"] = {
        name: figures(confusion[index], per_image[membership == index])
        for index, name in enumerate(groups)
        if (membership == index).any()
    }
    return total


def scalar_metrics(figures: dict[str, Any]) -> dict[str, float]:
    """The defined top-level scalars and IoU per class, as flat names for logs and selection."""
    flat = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    for name, scores in figures["per_class"].items():
        if scores["iou"] is not None:
            flat[f"iou_{name}"] = scores["iou"]
    return flat


def selection_value(figures: dict[str, Any], metric: str) -> float:
    """The value that the best checkpoint is chosen by.

    Raises:
        ConfigError: there is no such metric in this evaluation.
    """
    scalars = scalar_metrics(figures)
    if metric not in scalars:
        raise ConfigError(
            f"training.selection_metric: there is no metric {metric!r}; there are {', '.join(sorted(scalars))}"
        )
    return scalars[metric]
