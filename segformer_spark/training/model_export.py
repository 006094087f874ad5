"""A run's model as a folder that others load: best/ and final/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.export import ModelCard, export_model
from segformer_spark.config.load import run_name
from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.engine.engine import Engine
from segformer_spark.models.registry import describe_model
from segformer_spark.training.progress import Progress


class ModelExport:
    """Exports the engine's weights, averaged if asked for, with the card that says how to use them."""

    def __init__(self, engine: Engine, config: Config, classes: ClassInfo) -> None:
        self.engine, self.config, self.classes = engine, config, classes

    def write(self, folder: Path, progress: Progress, metrics: dict[str, float]) -> None:
        """Write the folder, all or nothing. Collective."""
        engine, card = self.engine, self._card(progress, metrics)
        weights = engine.weights()
        engine.group.on_main(lambda: export_model(engine.model, weights, engine.names, folder, card))

    def _card(self, progress: Progress, metrics: dict[str, float]) -> ModelCard:
        config = self.config
        return ModelCard(
            dataset=config.data.dataset,
            class_names=tuple(self.classes.names),
            colors=tuple(self.classes.colors),
            background=self.classes.background,
            image_size=config.data.input_size,
            inference=config.inference.model_dump(),
            step=progress.step,
            epoch=progress.position.epoch,
            metrics=metrics,
            run=run_name(config),
            model=describe_model(config.model),
            flip_pairs=None if config.data.flip_pairs is None else tuple(config.data.flip_pairs),
            exif_orientation=config.data.exif_orientation or "stored",
            recipe=recipe_of(config),
        )


def recipe_of(config: Config) -> dict[str, Any]:
    """How the model is trained, in few words."""
    training, optimizer = config.training, config.training.optimizer
    pretrained = config.model.pretrained
    return {
        # A path says more of a machine than of a model.
        "pretrained": Path(pretrained).name,
        "epochs": training.epochs,
        "batch size per device": training.batch_size,
        "optimizer": f"{optimizer.type}, learning rate {optimizer.lr:g}, weight decay {optimizer.weight_decay:g}",
        "schedule": training.scheduler.type,
        "loss": training.loss.type,
        "precision": training.precision,
        "averaged weights": "no" if training.ema.decay is None else f"decay {training.ema.decay:g}",
        "seed": config.experiment.seed,
    }
