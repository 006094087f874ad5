"""Figures of an evaluation: confusion matrix, scores per class and group, and Input | Truth | Prediction panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import ClassInfo, Image, Mask
from segformer_spark.run.atomic import atomic_file

_IGNORED_COLOR = (128, 128, 128)
_GAP = 6


def color_mask(mask: Mask, classes: ClassInfo) -> Image:
    """Class ids (H, W) -> RGB (H, W, 3); ignored pixels are grey."""
    palette = np.full((256, 3), _IGNORED_COLOR, np.uint8)
    palette[: len(classes)] = classes.colors
    return palette[mask]


def overlay(image: Image, mask: Mask, classes: ClassInfo, alpha: float = 0.5) -> Image:
    """The image with its mask's foreground laid over it."""
    foreground = (mask != classes.background)[..., None]
    mixed = (1 - alpha) * image + alpha * color_mask(mask, classes)
    return np.where(foreground, mixed, image).astype(np.uint8)


def write_panel(path: Path, image: Image, truth: Mask, prediction: Mask, classes: ClassInfo, title: str) -> None:
    """One row Input | Truth | Prediction as a PNG of at most 512 pixels per tile."""
    side = min(512, max(image.shape[:2]))
    scale = side / max(image.shape[:2])
    tiles = [image, overlay(image, truth, classes), overlay(image, prediction, classes)]
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = [cv2.resize(tile, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST) for tile in tiles]
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    row = np.hstack([small[0], gap, small[1], gap, small[2]])
    header = np.full((44, row.shape[1], 3), 255, np.uint8)
    cv2.putText(header, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    for index, label in enumerate(("Input", "Truth", "Prediction")):
        cv2.putText(
            header,
            label,
            (6 + index * (size[0] + _GAP), 37),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.42,
            (90, 90, 90),
            1,
            cv2.LINE_AA,
        )
    _, encoded = cv2.imencode(".png", np.vstack([header, row])[:, :, ::-1])
    with atomic_file(path) as stream:
        stream.write(encoded.tobytes())


def draw_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """The confusion matrix in percent of each true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0) * 100
    side = 2.4 + 0.6 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="prediction", ylabel="truth", title="percent of the true class")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    if len(names) <= 25:
        for row, column in np.ndindex(*share.shape):
            color = "white" if share[row, column] > 55 else "black"
            axis.text(column, row, f"{share[row, column]:.1f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(picture, ax=axis, shrink=0.8)
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def draw_groups(figures: dict[str, Any], path: Path) -> None:
    """IoU per class and, where there is one, the SPARK score, for every group and in all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {**figures["groups"], "all": figures}
    names = list(figures["per_class"])
    series = {f"IoU {name}": [g["per_class"][name]["iou"] for g in groups.values()] for name in names}
    if "spark_score" in figures:
        series["SPARK score"] = [g["spark_score"] for g in groups.values()]
    series = dict(list(series.items())[:8])
    figure = Figure(figsize=(max(6, 1.1 * len(groups) + 2), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        axis.bar(places, [0 if value is None else value for value in values], width, label=label)
    axis.set_xticks(range(len(groups)), list(groups), rotation=35, ha="right")
    axis.set(ylim=(0, 1), ylabel="score")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small", ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
