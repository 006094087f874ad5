"""Figures of an anomaly evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image
from segformer_spark.metrics.ranking import Ranking
from segformer_spark.run.figures import new_figure, save_figure

_COLUMNS = 5
"""Panels of F1 in a row."""


def draw_curves(rankings: Mapping[str, Ranking], path: Path) -> None:
    """ROC, precision over recall, and F1 over the threshold, one panel per method since each has a scale of its own."""
    rows = -(-len(rankings) // _COLUMNS)
    figure = new_figure(12, 3.8 + 2.1 * rows)
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.8, 2.1 * rows])
    roc, recall = upper.subplots(1, 2)
    panels = list(lower.subplots(rows, _COLUMNS, squeeze=False).flat)
    for (method, one), panel in zip(rankings.items(), panels, strict=False):
        roc.plot(np.r_[0, one.false_positive_rate], np.r_[0, one.recall], label=f"{method} {one.auroc():.3f}")
        recall.plot(one.recall, one.precision, label=f"{method} {one.average_precision():.3f}")
        _draw_f1(panel, method, one)
    for panel in panels[len(rankings) :]:
        panel.axis("off")
    roc.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    roc.set(xlabel="false-positive rate", ylabel="recall", title="ROC, all pixels")
    recall.set(xlabel="recall", ylabel="precision", title="precision and recall, all pixels", ylim=(0, 1.02))
    for axis in (roc, recall):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    save_figure(figure, path)


def _draw_f1(axis: Any, method: str, ranking: Ranking) -> None:
    f1, best = ranking.f1, ranking.best
    axis.plot(ranking.thresholds, f1)
    axis.plot(ranking.thresholds[best], f1[best], marker="o", label=f"oracle: {f1[best]:.3f}")
    # The bulk of the scores: single pixels far out, or infinite, would press the curve into a corner.
    called = (ranking.true_positives + ranking.false_positives) / (ranking.positives + ranking.negatives)
    ends = [ranking.thresholds[int(np.argmax(called >= share))] for share in (0.999, 0.0001)]
    shown = [float(end) for end in (*ends, ranking.thresholds[best]) if np.isfinite(end)]
    if shown and min(shown) < max(shown):
        axis.set_xlim(min(shown), max(shown))
    axis.set(title=method, xlabel="threshold", ylabel="F1", ylim=(0, None))
    axis.title.set_fontsize("small")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")


def score_picture(scores: NDArray[np.float32]) -> Image:
    """Scores (H, W) as colours, from their 1st to their 99th percentile."""
    low, high = np.percentile(scores, [1, 99])
    scaled = np.clip((scores - low) / max(float(high - low), 1e-12), 0, 1)
    colored: Image = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    return np.ascontiguousarray(colored)
