"""Test-time augmentation: the passes in which an image is shown turned, mirrored or at another scale."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.errors import UserError

SCALES = (0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Pass:
    """One way in which an image is shown.

    Attributes:
        axes: of (B, C, H, W), flipped after the turn.
        turns: quarter turns against the clock.
        scale: factor on height and width.
    """

    axes: tuple[int, ...] = ()
    turns: int = 0
    scale: float = 1.0

    def show(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) as the model sees them in this pass."""
        if self.scale != 1:
            height, width = (max(1, round(side * self.scale)) for side in images.shape[-2:])
            images = functional.interpolate(
                images, size=(height, width), mode="bilinear", align_corners=False, antialias=self.scale < 1
            )
        if self.turns:
            images = torch.rot90(images, self.turns, (-2, -1))
        return images.flip(self.axes) if self.axes else images

    def undo(self, logits: Tensor) -> Tensor:
        """Logits (..., h, w) of this pass, upright again, on the grid of its scale."""
        logits = logits.flip(self.axes) if self.axes else logits
        return torch.rot90(logits, -self.turns, (-2, -1)) if self.turns else logits

    @property
    def mirrors(self) -> bool:
        """Whether left and right are exchanged."""
        return -1 in self.axes


_PARTS: dict[str, tuple[Pass, ...]] = {
    "hflip": (Pass(), Pass((-1,))),
    "flips": (Pass(), Pass((-1,)), Pass((-2,)), Pass((-2, -1))),
    "turns": tuple(Pass(turns=turns) for turns in range(4)),
    "scales": tuple(Pass(scale=scale) for scale in SCALES),
}

TTA = ("none", *_PARTS)
"""Names of augmentations; several are joined by a plus sign, as in hflip+scales."""


@functools.cache
def passes_of(tta: str) -> tuple[Pass, ...]:
    """The passes of an augmentation.

    Raises:
        UserError: there is none of this name, or flips meet hflip.
    """
    if tta == "none":
        return (Pass(),)
    names = tta.split("+")
    unknown = [name for name in names if name not in _PARTS]
    if unknown or len(set(names)) != len(names) or {"hflip", "flips"} <= set(names):
        raise UserError(f"tta {tta}: choose among {', '.join(TTA)}, each once, hflip or flips, joined by +")
    joined = product(*(_PARTS[name] for name in names))
    return tuple(dict.fromkeys(_together(parts) for parts in joined))


def _together(parts: tuple[Pass, ...]) -> Pass:
    axes = tuple(axis for part in parts for axis in part.axes)
    turns, scale = sum(part.turns for part in parts), 1.0
    for part in parts:
        scale *= part.scale
    return Pass(axes, turns, scale)
