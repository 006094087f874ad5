"""Validation while training: metrics over the split, and predictions of a few fixed images."""

from __future__ import annotations

from typing import Any

import numpy as np

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import Image, SegmentationDataset
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.evaluation.evaluate import predicted_panels
from segformer_spark.evaluation.predict import Predictor, check_view, count
from segformer_spark.metrics.report import report
from segformer_spark.training.reporter import Reporter


class Validation:
    """Evaluates the engine's model, averaged weights first, as `evaluate` would evaluate its export."""

    def __init__(self, engine: Engine, dataset: SegmentationDataset, config: Config, group: Group) -> None:
        self.engine, self.dataset, self.group = engine, dataset, group
        batch_size = config.training.validation.batch_size or config.training.batch_size
        check_view(config.inference, dataset)
        view = InferenceView(config.data.image_size, config.inference)
        self.loading = EvalLoading(view, batch_size, config.data.num_workers)
        self.predictor = Predictor(
            engine.model, group.device, view, config.training.precision, background=dataset.classes.background
        )
        self._membership = [dataset.category(index) for index in range(len(dataset))]
        self.draws = config.output.tensorboard
        number = min(config.output.tensorboard_images, len(dataset))
        self.fixed_images = [int(i) for i in np.linspace(0, len(dataset) - 1, number).round()] if number else []

    def evaluate(self) -> dict[str, Any]:
        """All figures. Collective."""
        with self.engine.averaged():
            counts = count(self.predictor, self.dataset, self.loading, self.group, "validation")
        classes = self.dataset.classes
        return report(
            counts,
            self._membership,
            class_names=classes.names,
            background=classes.background,
            categories=self.dataset.categories,
        )

    def draw(self, metrics: dict[str, Any], reporter: Reporter, step: int) -> None:
        """Predictions of the fixed images and the confusion matrix, for TensorBoard. Collective."""

        def on_main() -> None:
            panels = self._panels() if self.fixed_images else []
            reporter.pictures(step, panels, metrics["confusion"], self.dataset.classes.names)

        if self.draws:
            self.group.on_main(on_main)

    def _panels(self) -> list[tuple[str, Image]]:
        loading = EvalLoading(self.loading.view, self.loading.batch_size, 0)
        titles = {index: self.dataset.sample_id(index) for index in self.fixed_images}
        with self.engine.averaged():
            return list(predicted_panels(self.predictor, self.dataset, loading, titles))
