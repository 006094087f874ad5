"""Figures of an evaluation: confusion matrix, scores per class and category, and Input | Truth | Prediction panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import ClassInfo, Color, Image, Mask
from segformer_spark.data.overlay import overlay
from segformer_spark.run.figures import new_figure, save_figure

WRONG = (230, 0, 120)
"""The colour of errors, which any colour vision tells from red, blue and green."""

_GAP = 6
_LARGEST_INCHES = 12.0
_MOST_NAMES, _MOST_SERIES = 40, 7


def make_panel(
    image: Image,
    truth: Mask,
    prediction: Mask,
    classes: ClassInfo,
    title: str,
    more: Mapping[str, Image] | None = None,
) -> Image:
    """One row Input | Truth | Prediction, and `more`, of at most 512 pixels per tile, under the classes' colours."""
    side = min(512, max(image.shape[:2]))
    scale = side / max(image.shape[:2])
    named = {"Input": image, "Truth": overlay(image, truth, classes), "Prediction": overlay(image, prediction, classes)}
    named |= more or {}
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = [cv2.resize(tile, size, interpolation=method) for tile in named.values()]
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    row = np.hstack([part for tile in small for part in (tile, gap)][:-1])
    header = np.full((44, row.shape[1], 3), 255, np.uint8)
    cv2.putText(header, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    _draw_legend(header, classes, left=_text_width(title) + 24)
    for index, label in enumerate(named):
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
    return np.vstack([header, row])


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0])


def _draw_legend(header: Image, classes: ClassInfo, left: int) -> None:
    """The classes' colours beside the title, as many as there is room for."""
    for name, color in zip(classes.names, classes.colors, strict=True):
        right = left + 16 + _text_width(name)
        if right > header.shape[1]:
            return
        cv2.rectangle(header, (left, 8), (left + 10, 18), color, -1)
        cv2.rectangle(header, (left, 8), (left + 10, 18), (120, 120, 120), 1)
        cv2.putText(header, name, (left + 14, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        left = right + 12


def error_tile(image: Image, truth: Mask, prediction: Mask, num_classes: int) -> Image:
    """The image in grey, wrong pixels in the colour of errors, pixels without a label white."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 2
    void = truth >= num_classes
    grey[void] = 255
    grey[(truth != prediction) & ~void] = WRONG
    return np.asarray(grey)


def stack_panels(panels: Sequence[Image]) -> Image:
    """Panels one below the other, on white where they are narrower than the widest."""
    width = max(panel.shape[1] for panel in panels)
    rows = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in panels]
    return np.vstack(rows)


def draw_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix as PNG."""
    save_figure(confusion_figure(confusion, names), path)


def confusion_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> Any:
    """The confusion matrix in percent of each true class, as a matplotlib figure."""
    rows = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0) * 100
    side = min(2.4 + 0.6 * len(names), _LARGEST_INCHES)
    figure = new_figure(side + 0.8, side)
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="prediction", ylabel="truth", title="percent of the true class")
    if len(names) <= _MOST_NAMES:
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for row, column in np.ndindex(*share.shape):
            color = "white" if share[row, column] > 55 else "black"
            axis.text(column, row, f"{share[row, column]:.1f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(picture, ax=axis, shrink=0.8)
    return figure


def draw_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Accuracy of the pixels over how probable their class was, and the pixels in each bin."""
    bins = [row for row in calibration["bins"] if row["pixels"]]
    figure = new_figure(5.2, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="calibrated")
    upper.plot([row["confidence"] for row in bins], [row["accuracy"] for row in bins], marker="o", label="model")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1.02))
    upper.set_title(f"expected calibration error {calibration['ece']:.3f}", fontsize="medium")
    upper.legend(fontsize="small")
    upper.grid(alpha=0.3)
    total = sum(row["pixels"] for row in bins)
    middles = [(row["from"] + row["to"]) / 2 for row in bins]
    lower.bar(middles, [100 * row["pixels"] / total for row in bins], width=bins[0]["to"] - bins[0]["from"])
    lower.set(xlabel="probability of the predicted class", ylabel="% of pixels")
    save_figure(figure, path)


def draw_categories(metrics: dict[str, Any], colors: Sequence[Color], path: Path) -> None:
    """IoU per class and, where defined, the SPARK score: overall and for every category, if there are any."""
    categories = {**metrics["categories"], "all": metrics}
    names = list(metrics["per_class"])
    if len(categories) == 1 or len(names) > _MOST_SERIES:
        _draw_classes(metrics, names, colors, path)
        return
    series = {f"IoU {name}": [g["per_class"][name]["iou"] for g in categories.values()] for name in names}
    if "spark_score" in metrics:
        series["SPARK score"] = [g["spark_score"] for g in categories.values()]
    figure = new_figure(max(6, 1.1 * len(categories) + 2), 3.8)
    axis = figure.subplots()
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        positions = np.arange(len(categories)) + (index - (len(series) - 1) / 2) * width
        color = _shown(colors[index]) if index < len(names) else "#777777"
        heights = [0 if value is None else value for value in values]
        axis.bar(positions, heights, width, label=label, color=color, edgecolor="black", linewidth=0.4)
    axis.set_xticks(range(len(categories)), list(categories), rotation=35, ha="right")
    axis.set(ylim=(0, 1), ylabel="score")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small", ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)


def _shown(color: Color) -> tuple[float, float, float]:
    """The class's colour in masks, for matplotlib; black, which a background often is, as light grey."""
    if max(color) < 30:
        return 0.85, 0.85, 0.85
    return color[0] / 255, color[1] / 255, color[2] / 255


def _draw_classes(metrics: dict[str, Any], names: Sequence[str], colors: Sequence[Color], path: Path) -> None:
    """One bar per class, the best first, and the mean as a line."""
    ordered = sorted(names, key=lambda name: -(metrics["per_class"][name]["iou"] or 0))
    figure = new_figure(min(max(6.0, 0.45 * len(names) + 2), _LARGEST_INCHES + 6), 3.8)
    axis = figure.subplots()
    shown = [_shown(colors[list(names).index(name)]) for name in ordered]
    heights = [metrics["per_class"][name]["iou"] or 0 for name in ordered]
    axis.bar(range(len(ordered)), heights, color=shown, edgecolor="black", linewidth=0.4)
    if metrics["miou"] is not None:
        axis.axhline(metrics["miou"], color="tab:orange", linestyle="--", label=f"mean {metrics['miou']:.3f}")
        axis.legend(fontsize="small")
    size = 8 if len(names) <= _MOST_NAMES else 4
    axis.set_xticks(range(len(ordered)), ordered, rotation=90 if len(names) > 12 else 35, ha="right", fontsize=size)
    axis.set(ylim=(0, 1), ylabel="IoU")
    axis.grid(axis="y", alpha=0.3)
    save_figure(figure, path)
