"""The smallest SegFormer that shows the behaviour: four stages of one block, eight channels, 13,867 parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.export import ModelCard, export_model
from segformer_spark.config.variants import Variant
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.segformer import SegFormer, build_segformer

TINY = Variant(depths=(1, 1, 1, 1), hidden_sizes=(8, 8, 8, 8), decoder_size=8, num_heads=(1, 1, 1, 1))

TINY_PARAMETERS = 13_840
"""Without the classifier, which has 9 for each class."""

TINY_SETTINGS = (
    "model.variant=custom",
    "model.pretrained=none",
    "model.custom.depths=[1, 1, 1, 1]",
    "model.custom.hidden_sizes=[8, 8, 8, 8]",
    "model.custom.num_heads=[1, 1, 1, 1]",
    "model.custom.decoder_size=8",
)
"""The same as overrides of a configuration."""


def tiny_segformer(class_names: Sequence[str], *, seed: int = 0, **options: float) -> SegFormer:
    """With the same random weights for the same seed."""
    return build_segformer(TINY, class_names, seed=seed, **options)


def untrained_card(classes: ClassInfo, *, image_size: int = 64, **fields: Any) -> ModelCard:
    """The card of a model that was never trained; `fields` replace what it says."""
    card = ModelCard(
        dataset="test",
        class_names=classes.names,
        colors=classes.colors,
        background=classes.background,
        image_size=(image_size, image_size),
        inference={},
        step=0,
        epoch=0,
        metrics={},
        run="test",
    )
    return replace(card, **fields)


def export_live(model: SegmentationModel, folder: Path, card: ModelCard) -> Path:
    """The model folder of a model without an engine."""
    names = model.stored_names()
    export_model(model, {names[live]: value for live, value in model.state_dict().items()}, names, folder, card)
    return folder


def export_tiny(folder: Path) -> Path:
    """A model folder for SPARK's classes, never trained."""
    return export_live(tiny_segformer(SPARK_CLASSES.names), folder, untrained_card(SPARK_CLASSES, dataset="spark"))
