"""The encoder's stages as CUDA graphs: the kernels of a stage are launched together, forward and backward.

On a small batch the host takes longer to launch a kernel than a GPU to run it. A graph replays recorded launches on the
same memory, without Python, for one shape of images (https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA
Graphs"). Random numbers of stochastic depth are drawn outside of it, and come in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segformer_spark.models.mix_transformer import Block
from segformer_spark.models.mix_transformer_gpu import RunBlock, branch_scales, split_scales, transform_stage
from segformer_spark.run.console import logger

Capture = Callable[[tuple[nn.Module, ...], tuple[tuple[Tensor, ...], ...]], Sequence[Callable[..., Tensor]]]
"""As torch.cuda.make_graphed_callables: modules and example arguments of each -> what replays them."""


class CapturableStage(nn.Module):
    """A stage whose arguments are tensors. Its parameters are the encoder's own."""

    def __init__(self, stage: nn.Module, dtype: torch.dtype, fused: bool, run_block: RunBlock) -> None:
        super().__init__()
        self.stage, self._dtype, self._fused, self._run_block = stage, dtype, fused, run_block
        blocks: Any = stage.blocks
        self.drop_rates = [block.drop_rate for block in blocks]

    def forward(self, maps: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> the stage's map; `scales` has a row for each branch (`branch_scales`)."""
        own = split_scales(scales, self.drop_rates)
        return transform_stage(self.stage, maps, own, self._dtype, self._fused, self._run_block)


class GraphedStages:
    """The four stages, recorded for training images of one shape.

    Args:
        images: an example of the encoder's input, (B, H, W, 3) in the type that its layers compute in.
        capture: records the stages, finest first.
    """

    def __init__(
        self,
        encoder: nn.Module,
        images: Tensor,
        blocks: Sequence[Block],
        *,
        fused: bool,
        run_block: RunBlock,
        capture: Capture,
    ) -> None:
        stages: Any = encoder.stages
        parts = [CapturableStage(stage, images.dtype, fused, run_block).train() for stage in stages]
        self._rows = [2 * len(part.drop_rates) for part in parts]
        scales = self._of_stages(branch_scales(images, [block.drop_rate for block in blocks]))
        examples: list[tuple[Tensor, ...]] = []
        maps = images
        for part, own in zip(parts, scales, strict=True):
            examples.append(_arguments(maps, own))
            with torch.no_grad():
                maps = part(*examples[-1])
            maps = maps.clone().requires_grad_()
        self._made_for, self._said_other = (images.shape, images.dtype), False
        self._stages = capture(tuple(parts), tuple(examples))

    def take(self, maps: Tensor) -> bool:
        """Whether these images can be replayed: of training's shape and type, and a backward pass to come."""
        if not torch.is_grad_enabled():
            return False
        same = (maps.shape, maps.dtype) == self._made_for
        if not same and not self._said_other:
            self._said_other = True
            logger.info(
                "CUDA graphs are for images %s; others, the first of them %s, run eagerly",
                _described(*self._made_for),
                _described(maps.shape, maps.dtype),
            )
        return same

    def __call__(self, maps: Tensor, scales: Tensor | None) -> tuple[Tensor, ...]:
        """The four maps. They and their gradients live in memory that the next step writes over."""
        features = []
        for stage, own in zip(self._stages, self._of_stages(scales), strict=True):
            maps = stage(*_arguments(maps, own))
            features.append(maps)
        return tuple(features)

    def _of_stages(self, scales: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * len(self._rows) if scales is None else scales.split_with_sizes(self._rows)


def _arguments(maps: Tensor, scales: Tensor | None) -> tuple[Tensor, ...]:
    return (maps,) if scales is None else (maps, scales)


def _described(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{tuple(shape)} in {str(dtype).removeprefix('torch.')}"
