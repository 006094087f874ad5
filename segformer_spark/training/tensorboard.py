"""TensorBoard: scalars, predictions of the same images over time, confusion matrix, hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.data.dataset import Image
from segformer_spark.evaluation.pictures import confusion_figure


class Board:
    """A TensorBoard event file of a run."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Curves, one per name; undefined values are left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def pictures(self, panels: Sequence[tuple[str, Image]], step: int) -> None:
        """One picture per image: Input, Truth, Prediction."""
        for name, panel in panels:
            self._writer.add_image(f"predictions/{name}", panel, step, dataformats="HWC")

    def confusion(self, matrix: Sequence[Sequence[int]], names: Sequence[str], step: int) -> None:
        """The confusion matrix in percent of each true class."""
        figure = confusion_figure(np.asarray(matrix), names)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        self._writer.add_image("validation/confusion", pixels, step, dataformats="HWC")

    def hparams(self, values: Mapping[str, Any], score: tuple[str, float]) -> None:
        """The settings of the run beside its best score."""
        name, best = score
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
        self._writer.add_hparams(plain, {f"best/{name}": best}, run_name=".")

    def close(self) -> None:
        """Flush everything."""
        self._writer.close()
