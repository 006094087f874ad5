"""The smallest SegFormer that shows the behaviour: four stages of one block, eight channels, 13,867 parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segformer_spark.checkpoint.export import ModelCard, export_model
from segformer_spark.config.variants import Variant
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.models.segformer import SegFormer, build_segformer, portable_names

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


def export_tiny(folder: Path, *, image_size: int = 64) -> Path:
    """A model folder for SPARK's classes, never trained."""
    model = tiny_segformer(SPARK_CLASSES.names)
    names = portable_names(model)
    card = ModelCard(
        dataset="spark",
        class_names=SPARK_CLASSES.names,
        colors=SPARK_CLASSES.colors,
        background=SPARK_CLASSES.background,
        image_size=image_size,
        inference={},
        step=0,
        epoch=0,
        metrics={},
        run="tiny",
    )
    export_model(model, {names[live]: value for live, value in model.state_dict().items()}, names, folder, card)
    return folder
