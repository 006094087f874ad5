"""TensorBoard: scalars, predictions of the same images over time, confusion matrix, hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.evaluation.pictures import confusion_figure
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.training.sinks import INTERVAL_SCALARS, PicturesReport, Sink, ValidationReport, interval_scalars
from segformer_spark.training.throughput import IntervalReport


class TensorBoardSink(Sink):
    """Event files of a run.

    Args:
        log: has the last interval once more, when a resumed run forgets a validation at the same step.
    """

    def __init__(self, folder: Path, log: MetricsLog) -> None:
        self.folder, self.log = folder, log
        self._writer: Any = None

    def start(self, step: int, *, validated: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Purging forgets all curves from a step on: what stays valid at `step` is written again.
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if validated else step)
        for row in self.log.rows() if not validated else ():
            if row["kind"] == "train" and row["step"] == step:
                self._interval({key: row.get(key) for key in INTERVAL_SCALARS}, row.get("lrs", {}), step)

    def interval(self, report: IntervalReport) -> None:
        self._interval(interval_scalars(report), report.lrs, report.step)

    def validation(self, report: ValidationReport) -> None:
        self._scalars({_tag(key): value for key, value in report.scalars.items()}, report.step)

    def pictures(self, report: PicturesReport) -> None:
        """Input, Truth, Prediction of each image, and the confusion matrix in percent of each true class."""
        for name, panel in report.panels:
            self._writer.add_image(f"predictions/{name}", panel, report.step, dataformats="HWC")
        figure = confusion_figure(np.asarray(report.confusion), report.class_names)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        self._writer.add_image("validation/confusion", pixels, report.step, dataformats="HWC")

    def hparams(self, values: Mapping[str, Any], metric: str, best: float, step: int) -> None:
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
        self._writer.add_hparams(plain, {f"best/{metric}": best}, run_name=".", global_step=step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _interval(self, scalars: Mapping[str, float | None], lrs: Mapping[str, float], step: int) -> None:
        self._scalars({f"train/{key}": value for key, value in scalars.items()}, step)
        self._scalars({f"lr/{name}": value for name, value in lrs.items()}, step)

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Curves, one per name; undefined values are left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)


def _tag(key: str) -> str:
    """Classes' IoU has a section of its own."""
    return f"iou/{key.removeprefix('iou_')}" if key.startswith("iou_") else f"validation/{key}"
