"""Validation while training: when it is due, its metrics, pictures of a few fixed images, and the best model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import Image, SegmentationDataset
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading
from segformer_spark.engine.engine import Engine
from segformer_spark.evaluation.evaluate import predicted_panels
from segformer_spark.evaluation.predict import Predictor, check_view, count
from segformer_spark.metrics.report import report, scalar_metrics, selection_value
from segformer_spark.run.console import logger
from segformer_spark.training.best import BestTracker
from segformer_spark.training.model_export import ModelExport
from segformer_spark.training.progress import Progress
from segformer_spark.training.reporter import Reporter
from segformer_spark.training.sinks import PicturesReport, ValidationReport


class Validation:
    """Evaluates the engine's model, averaged weights first, as `evaluate` would evaluate its export.

    Attributes:
        best: the best score so far.
        best_folder: where the model of a new best score is exported to.
    """

    def __init__(
        self,
        engine: Engine,
        dataset: SegmentationDataset,
        config: Config,
        reporter: Reporter,
        best: BestTracker,
        export: ModelExport,
        best_folder: Path,
    ) -> None:
        self.engine, self.dataset, self.group = engine, dataset, engine.group
        self.reporter, self.best, self.export, self.best_folder = reporter, best, export, best_folder
        self.settings, self.metric = config.training.validation, config.training.selection_metric
        check_view(config.inference, dataset)
        view = InferenceView(config.data.input_size, config.inference)
        batch_size = self.settings.batch_size or config.training.batch_size
        self.loading = EvalLoading(view, batch_size, config.data.num_workers)
        self.predictor = Predictor(
            engine.model, self.group.device, view, config.training.precision, background=dataset.classes.background
        )
        self._category_of_image = [dataset.category(index) for index in range(len(dataset))]
        self.draws, self._said_undefined = config.output.tensorboard, False
        number = min(config.output.tensorboard_images, len(dataset))
        self.fixed_images = [int(i) for i in np.linspace(0, len(dataset) - 1, number).round()] if number else []

    def is_due(self, progress: Progress) -> bool:
        """After the configured epochs and steps, once each."""
        if progress.step == 0 or progress.validated_step == progress.step:
            return False
        if self.settings.every_steps is not None and progress.step % self.settings.every_steps == 0:
            return True
        every_epochs, position = self.settings.every_epochs, progress.position
        return every_epochs is not None and position.step == 0 and position.epoch % every_epochs == 0

    def run(self, progress: Progress) -> None:
        """Evaluate, report, and export the model if it is the best so far. Collective."""
        started = time.monotonic()
        metrics = self.evaluate()
        scalars = scalar_metrics(metrics)
        progress.validated_step = progress.step
        value = selection_value(metrics, self.metric)
        if value is None and not self._said_undefined:
            self._said_undefined = True
            reason = "no labelled pixel" if metrics["num_pixels"] == 0 else f"too few classes for {self.metric}"
            logger.warning("validation: nothing could be measured (%s), so no best model is chosen by it", reason)
        is_best = progress.step > 0 and self.best.update(value, progress.step)
        if is_best:
            self.export.write(self.best_folder, progress, scalars)
        position = progress.position
        self.reporter.validation(
            ValidationReport(
                step=progress.step,
                epoch=position.epoch if position.step == 0 else position.epoch + 1,
                scalars={key: value for key, value in scalars.items() if not key.startswith("num_")},
                seconds=time.monotonic() - started,
                is_best=is_best,
                metric=self.metric,
            )
        )
        self._draw(metrics, progress.step)
        self.reporter.exclude(time.monotonic() - started)

    def evaluate(self) -> dict[str, Any]:
        """All metrics. Collective."""
        with self.engine.averaged():
            counts = count(self.predictor, self.dataset, self.loading, self.group, "validation")
        classes = self.dataset.classes
        return report(
            counts,
            self._category_of_image,
            class_names=classes.names,
            background=classes.background,
            categories=self.dataset.categories,
        )

    def _draw(self, metrics: dict[str, Any], step: int) -> None:
        """Predictions of the fixed images and the confusion matrix, for TensorBoard. Collective."""

        def on_main() -> None:
            panels = self._panels() if self.fixed_images else []
            self.reporter.pictures(PicturesReport(step, panels, metrics["confusion"], self.dataset.classes.names))

        if self.draws:
            self.group.on_main(on_main)

    def _panels(self) -> list[tuple[str, Image]]:
        loading = EvalLoading(self.loading.view, self.loading.batch_size, 0)
        titles = {index: self.dataset.sample_id(index) for index in self.fixed_images}
        with self.engine.averaged():
            return list(predicted_panels(self.predictor, self.dataset, loading, titles))
