"""The smallest SegFormer that shows the behaviour: four stages of one block, eight channels, 13,867 parameters."""

from __future__ import annotations

from collections.abc import Sequence

from segformer_spark.config.variants import Variant
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
