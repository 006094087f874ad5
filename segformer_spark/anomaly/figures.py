"""Figures of an anomaly evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Image
from segformer_spark.metrics.ranking import Ranking
from segformer_spark.run.figures import new_figure, save_figure


def draw_curves(rankings: Mapping[str, Ranking], path: Path) -> None:
    """ROC, precision over recall, and F1 over the share of pixels that are called strange."""
    figure = new_figure(12, 3.8)
    roc, recall, f1 = figure.subplots(1, 3)
    for method, one in rankings.items():
        roc.plot(np.r_[0, one.false_positive_rate], np.r_[0, one.recall], label=f"{method} {one.auroc():.3f}")
        recall.plot(one.recall, one.precision, label=f"{method} {one.average_precision():.3f}")
        called = (one.true_positives + one.false_positives) / (one.positives + one.negatives)
        f1.plot(called, one.f1, label=f"{method} {one.f1.max():.3f}")
    roc.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    roc.set(xlabel="false-positive rate", ylabel="recall", title="ROC, all pixels")
    recall.set(xlabel="recall", ylabel="precision", title="precision and recall, all pixels", ylim=(0, 1.02))
    f1.set(
        xlabel="share of pixels called strange",
        ylabel="F1",
        title="F1; in the legend its best, an oracle's",
        xscale="log",
    )
    for axis in (roc, recall, f1):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    save_figure(figure, path)


def score_picture(scores: NDArray[np.float32]) -> Image:
    """Scores (H, W) as colours, from their 1st to their 99th percentile."""
    low, high = np.percentile(scores, [1, 99])
    scaled = np.clip((scores - low) / max(float(high - low), 1e-12), 0, 1)
    colored: Image = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    return np.ascontiguousarray(colored)
