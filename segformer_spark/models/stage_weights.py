"""The parameters of an encoder stage in the types that its layers use, converted together in every step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segformer_spark.kernels.cast import Stacks, cast_together

_KEPT_BY_FUSED = re.compile(r"norm\w*\.\w+$|dwconv\.\w+$|(o_proj|fc1|fc2)\.bias$")
"""Parameters that operations of this package take in fp32."""

_KEYS_OR_VALUES = re.compile(r"\.[kv]_proj\.")
"""Two layers of the same maps, computed as one."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class StageWeights:
    """Parameters by their names below their owner.

    Attributes:
        outer: of the stage without its blocks.
        blocks: of each block; equal blocks have equal names, so that code compiled for one is that of all.
    """

    outer: Mapping[str, Tensor]
    blocks: list[dict[str, Tensor]]


class StageCasting:
    """How a stage's parameters become those that its layers use, worked out once: names are slow to find.

    Args:
        fused: whether operations of this package compute what they can.
    """

    def __init__(self, stage: nn.Module, *, fused: bool) -> None:
        groups: dict[str, list[tuple[nn.Module, str]]] = {}
        kept: dict[str, tuple[nn.Module, str]] = {}
        for path, module in stage.named_modules():
            for leaf in module._parameters:
                name = f"{path}.{leaf}"
                if fused and _KEPT_BY_FUSED.search(name):
                    kept[name] = (module, leaf)
                else:
                    groups.setdefault(_KEYS_OR_VALUES.sub(".kv_proj.", name), []).append((module, leaf))
        self._kept = list(kept.values())
        self._owners = [owner for group in groups.values() for owner in group]
        self._stacks = Stacks([[getattr(*owner).shape for owner in group] for group in groups.values()])
        self._places = [_place(name) for name in (*kept, *groups)]
        self._num_blocks = 1 + max(number for number, _ in self._places)

    def weights(self, dtype: torch.dtype) -> StageWeights:
        """All of them, in `dtype` or as they are kept."""
        kept = (getattr(*owner) for owner in self._kept)
        wide = (value.float() if value.itemsize < 4 else value for value in kept)
        cast = cast_together([getattr(*owner) for owner in self._owners], self._stacks, dtype)
        return self._sorted([*wide, *cast])

    def _sorted(self, values: Iterable[Tensor]) -> StageWeights:
        outer: dict[str, Tensor] = {}
        blocks: list[dict[str, Tensor]] = [{} for _ in range(self._num_blocks)]
        for (number, name), value in zip(self._places, values, strict=True):
            (outer if number < 0 else blocks[number])[name] = value
        return StageWeights(outer, blocks)


def _place(name: str) -> tuple[int, str]:
    """The block of a parameter, -1 for none, and its name below its owner."""
    found = _BLOCK.match(name)
    return (-1, name) if found is None else (int(found[1]), found[2])
