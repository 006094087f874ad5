"""Sizes of SegFormer (Xie et al. 2021, table 6 of the supplement). Imports nothing: every layer reads them here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VariantName = Literal["b0", "b1", "b2", "b3", "b4", "b5", "custom"]
"""`custom` takes its sizes from the configuration (`model.custom`)."""

PerStage = tuple[int, int, int, int]


@dataclass(frozen=True)
class Variant:
    """Blocks, channels and attention heads of each stage, and the channels of the decode head."""

    depths: PerStage
    hidden_sizes: PerStage
    decoder_size: int
    num_heads: PerStage = (1, 2, 5, 8)


_SMALL, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS: dict[str, Variant] = {
    "b0": Variant((2, 2, 2, 2), _SMALL, 256),
    "b1": Variant((2, 2, 2, 2), _WIDE, 256),
    "b2": Variant((3, 4, 6, 3), _WIDE, 768),
    "b3": Variant((3, 4, 18, 3), _WIDE, 768),
    "b4": Variant((3, 8, 27, 3), _WIDE, 768),
    "b5": Variant((3, 6, 40, 3), _WIDE, 768),
}
