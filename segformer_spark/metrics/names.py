"""Which metrics an evaluation will have. Imports no torch: configurations are checked before that is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from segformer_spark.errors import ConfigError


def metric_names(class_names: Sequence[str], background: int | None = 0) -> list[str]:
    """The metrics that a best checkpoint can be chosen by, for these classes."""
    without = [] if background is None else ["miou_without_background"]
    names = ["miou", *without, "mean_dice", "pixel_accuracy"]
    if is_spark(class_names):
        names += ["spark_score", "spark_score_body", "spark_score_panels"]
    return names + [f"iou_{name}" for name in class_names]


def check_metric(metric: str, class_names: Sequence[str], background: int | None = 0) -> None:
    """Raise ConfigError when no evaluation of these classes will have `metric`."""
    names = metric_names(class_names, background)
    if metric not in names:
        near = difflib.get_close_matches(metric.lower(), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"training.selection_metric: there is no metric {metric!r}; {hint}There are {', '.join(names)}"
        )


def is_spark(class_names: Sequence[str]) -> bool:
    """Whether the SPARK score is defined for these classes."""
    return {"body", "panels"} <= set(class_names)
