"""Sizes of SegFormer (Xie et al. 2021, table 6 of the supplement). Imports nothing: every layer reads them here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VariantName = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


@dataclass(frozen=True)
class Variant:
    """Blocks and channels of each stage, and the channels of the decode head."""

    depths: tuple[int, int, int, int]
    hidden_sizes: tuple[int, int, int, int]
    decoder_size: int


_SMALL, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS: dict[VariantName, Variant] = {
    "b0": Variant((2, 2, 2, 2), _SMALL, 256),
    "b1": Variant((2, 2, 2, 2), _WIDE, 256),
    "b2": Variant((3, 4, 6, 3), _WIDE, 768),
    "b3": Variant((3, 4, 18, 3), _WIDE, 768),
    "b4": Variant((3, 8, 27, 3), _WIDE, 768),
    "b5": Variant((3, 6, 40, 3), _WIDE, 768),
}
