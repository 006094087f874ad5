"""Validation while training: when it is due, its metrics, pictures of a few fixed images, and the best model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import Image, SegmentationDataset
from segformer_spark.data.inference_view import InferenceView, check_view
from segformer_spark.data.loader import EvalLoading
from segformer_spark.engine.engine import Engine
from segformer_spark.evaluation.count import count
from segformer_spark.evaluation.drawn_images import panel_of, predicted_images
from segformer_spark.evaluation.predict import ImageLoss, Predictor
from segformer_spark.losses.build import WeightedSum
from segformer_spark.metrics.report import report, scalar_metrics, selection_value
from segformer_spark.run.console import logger
from segformer_spark.training.best import BestTracker
from segformer_spark.training.model_export import ModelExport
from segformer_spark.training.plan import selection_metric
from segformer_spark.training.progress import Progress
from segformer_spark.training.rehearsal import memory_of_validation, rehearse
from segformer_spark.training.reporter import Reporter
from segformer_spark.training.schedule import Plateau
from segformer_spark.training.sinks import PicturesReport, ValidationReport

VAL_LOSS, TRAIN_MIOU = "val_loss", "train_miou"


class ValidationData(Protocol):
    """What is validated on, and with which loss of an image (`training.setup.Setup`)."""

    @property
    def val_set(self) -> SegmentationDataset: ...

    @property
    def train_subset(self) -> SegmentationDataset | None: ...

    @property
    def image_loss(self) -> WeightedSum: ...


class Validation:
    """Evaluates the engine's model, averaged weights first, as `evaluate` would evaluate its export.

    Attributes:
        best: the best score so far.
        best_folder: where the model of a new best score is exported to.
    """

    def __init__(
        self,
        engine: Engine,
        data: ValidationData,
        config: Config,
        reporter: Reporter,
        best: BestTracker,
        export: ModelExport,
        best_folder: Path,
    ) -> None:
        self.engine, self.dataset, self.group = engine, data.val_set, engine.group
        self.train_subset, dataset = data.train_subset, data.val_set
        self.loss = data.image_loss.to(self.group.device)
        self.loss.use_kernels(config.hardware.kernels)
        self.reporter, self.best, self.export, self.best_folder = reporter, best, export, best_folder
        self.settings, self.metric = config.training.validation, selection_metric(config, dataset.classes)
        self.scheduler = config.training.scheduler
        for own in (dataset, *([self.train_subset] if self.train_subset is not None else [])):
            check_view(config.inference, own)
        view = InferenceView(config.data.input_size, config.inference)
        batch_size = self.settings.batch_size or config.training.batch_size
        self.loading = EvalLoading(view, batch_size, config.data.num_workers)
        self.predictor = Predictor(
            engine.model, self.group.device, view, config.training.precision, background=dataset.classes.background
        )
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
        scalars = {**scalar_metrics(metrics), **self._beside(metrics)}
        progress.validated_step = progress.step
        value = selection_value(metrics, self.metric)
        if value is None and not self._said_undefined:
            self._said_undefined = True
            reason = "no labelled pixel" if metrics["num_pixels"] == 0 else f"too few classes for {self.metric}"
            logger.warning("validation: nothing could be measured (%s), so no best model is chosen by it", reason)
        if self.scheduler.type == "plateau" and progress.step > 0:
            self._update_plateau(progress.plateau, value)
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

    def rehearse(self) -> None:
        """Try the largest image, where memory is a GPU's. Collective."""
        if self.group.device.type == "cuda":
            rehearse(self.predictor, self.dataset, self.loading, self.group, self.loss)

    def _update_plateau(self, plateau: Plateau, value: float | None) -> None:
        before = plateau.reductions
        plateau.update(value, self.scheduler.plateau_patience)
        if plateau.reductions > before:
            logger.info(
                "no rise of %s for %d validations: the learning rate is lowered to %g of its peak",
                *(self.metric, self.scheduler.plateau_patience),
                max(self.scheduler.min_lr_ratio, self.scheduler.plateau_factor**plateau.reductions),
            )

    @staticmethod
    def _beside(metrics: dict[str, Any]) -> dict[str, float]:
        """What is followed beside the scores that `evaluate` has, where it is known."""
        return {key: metrics[key] for key in (VAL_LOSS, TRAIN_MIOU) if metrics.get(key) is not None}

    def evaluate(self) -> dict[str, Any]:
        """All metrics, with `val_loss` and, if asked for, `train_miou`. Collective.

        val_loss is the mean over the images of the training loss of each by itself, without auxiliary logits.
        """
        with self.engine.averaged():
            metrics, loss = self._counted(self.dataset, "validation", self.loss)
            on_train = None
            if self.train_subset is not None:
                on_train, _ = self._counted(self.train_subset, "on training images", None)
        return {**metrics, VAL_LOSS: loss, TRAIN_MIOU: None if on_train is None else on_train["miou"]}

    def _counted(
        self, dataset: SegmentationDataset, label: str, loss: ImageLoss | None
    ) -> tuple[dict[str, Any], float | None]:
        with memory_of_validation(label, self.loading.batch_size, self.group):
            counts, mean_loss = count(self.predictor, dataset, self.loading, self.group, label, loss)
        metrics = report(
            counts,
            [dataset.category(index) for index in range(len(dataset))],
            class_names=dataset.classes.names,
            background=dataset.classes.background,
            categories=dataset.categories,
        )
        return metrics, mean_loss

    def _draw(self, metrics: dict[str, Any], step: int) -> None:
        """Predictions of the fixed images and the confusion matrix, for TensorBoard. Collective."""

        def on_main() -> None:
            panels = self._panels() if self.fixed_images else []
            self.reporter.pictures(PicturesReport(step, panels, metrics["confusion"], self.dataset.classes.names))

        if self.draws:
            self.group.on_main(on_main)

    def _panels(self) -> list[tuple[str, Image]]:
        loading = EvalLoading(self.loading.view, self.loading.batch_size, 0)
        with self.engine.averaged():
            return [
                (name := self.dataset.sample_id(drawn.index), panel_of(drawn, self.dataset, name))
                for drawn in predicted_images(self.predictor, self.dataset, loading, self.fixed_images)
            ]
