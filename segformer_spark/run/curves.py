"""The figure of a run's curves: losses, validation scores, learning rate."""

from __future__ import annotations

import math
from pathlib import Path

from segformer_spark.run.figures import new_figure, save_figure
from segformer_spark.run.metrics_log import Row

_SCORES = {
    "spark_score": "SPARK score",
    "miou": "mIoU",
    "miou_without_background": "mIoU without background",
    "train_miou": "mIoU on training images",
}
_FEW_POINTS = 20


def draw_curves(rows: list[Row], path: Path, title: str) -> None:
    """Draw loss, scores and learning rate against the step."""
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    figure = new_figure(11, 3.4)
    loss_axis, score_axis, rate_axis = figure.subplots(1, 3)
    marker = "." if len(train) <= _FEW_POINTS else None  # one point is no line
    loss_axis.plot(
        [row["step"] for row in train], [row.get("loss", math.nan) for row in train], marker=marker, linewidth=1
    )
    losses = [(row["step"], row["val_loss"]) for row in validation if row.get("val_loss") is not None]
    if losses:
        loss_axis.lines[0].set_label("training")
        loss_axis.plot(*zip(*losses, strict=True), marker=".", label="validation")
        loss_axis.legend(fontsize="small")
    loss_axis.set(title="loss", xlabel="optimizer step", ylim=(0, None))
    marked = False
    for key, label in _SCORES.items():
        points = [(row["step"], row[key]) for row in validation if row.get(key) is not None]
        if points:
            score_axis.plot(*zip(*points, strict=True), marker=".", label=label)
            if not marked:  # the first is what a run is judged by
                marked = True
                step, value = max(points, key=lambda point: (point[1], -point[0]))
                score_axis.plot(
                    [step], [value], marker="*", markersize=11, color="black", linestyle="none", label="best"
                )
    score_axis.set(title="validation", xlabel="optimizer step", ylim=(0, 1))
    if score_axis.lines:
        score_axis.legend(fontsize="small")
    rate_axis.plot(
        [row["step"] for row in train], [row.get("lr", math.nan) for row in train], marker=marker, linewidth=1
    )
    rate_axis.set(title="learning rate", xlabel="optimizer step", ylim=(0, None))
    for axis in (loss_axis, score_axis, rate_axis):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    save_figure(figure, path)
