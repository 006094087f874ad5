"""A step whose loss or gradient is not finite: nothing of it stays, and a message says where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from segformer_spark.data.loader import TrainBatch
from segformer_spark.data.transforms import normalize_images
from segformer_spark.distributed.process_group import Group
from segformer_spark.models.interface import SegmentationModel

_FILES_NAMED = 8


class BufferSnapshot:
    """A module's buffers (statistics of batch norm) before a step, which its forward pass changes."""

    def __init__(self, module: nn.Module) -> None:
        self._live = list(module.buffers())
        self._before = [torch.empty_like(buffer) for buffer in self._live]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the buffers."""
        if self._live:
            torch._foreach_copy_(self._before, self._live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        if self._live:
            torch._foreach_copy_(self._live, self._before)

    @torch.no_grad()
    def restore_if(self, dropped: Tensor) -> None:
        """Put them back where the scalar `dropped` is true, which the host does not know yet."""
        for live, before in zip(self._live, self._before, strict=True):
            live.copy_(torch.where(dropped, before, live))


def origin(
    model: SegmentationModel, batches: Sequence[TrainBatch], group: Group, autocast: AbstractContextManager[object]
) -> str:
    """Which ranks' logits are not finite, and for which images. Collective.

    The forward pass is repeated as evaluation does it: batch norm would carry one rank's values to all others.
    """
    model.eval()
    found: list[str] = []
    with torch.no_grad(), autocast:
        for batch in batches:
            images = normalize_images(batch.images.to(group.device)).to(next(model.parameters()).dtype)
            finite = torch.isfinite(model(images)).flatten(1).all(1).tolist()
            names = batch.files or [f"image {number} of the batch" for number in range(len(images))]
            found += [name for name, good in zip(names, finite, strict=True) if not good]
    by_rank = {rank: names for rank, names in enumerate(group.gather(found)) if names}
    if not by_rank:
        return "The logits are finite on every rank: it arose in the loss or in the backward pass"
    if len(by_rank) == group.world_size > 1:
        return f"The logits are not finite on any rank, on rank 0 for {_listed(by_rank[0])}"
    return ". ".join(f"Rank {rank}'s logits are not finite for {_listed(names)}" for rank, names in by_rank.items())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _FILES_NAMED
    return ", ".join(names[:_FILES_NAMED]) + (f" and {more} more" if more > 0 else "")
