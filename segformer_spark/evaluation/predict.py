"""Images -> class ids at native size: the one way that validation, evaluation and submission predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.loader import EvalItem, EvalLoading, eval_loader
from segformer_spark.data.sampler import rank_indices
from segformer_spark.data.transforms import normalize_images
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.models.segformer import SegFormer, resize_logits
from segformer_spark.run.console import progress

TTA_FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (-1,)),
    "flips": ((), (-1,), (-2,), (-2, -1)),
}
"""Test-time augmentation: axes of (B, C, H, W) flipped in each pass."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Predictor:
    """A model with the way it is asked.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast).
        tta: a key of TTA_FLIPS.
    """

    model: SegFormer
    device: torch.device
    precision: str = "fp32"
    tta: str = "none"

    def __post_init__(self) -> None:
        refuse_fp16_on_cpu(self.precision, self.device.type)

    def predict(self, items: Iterable[list[EvalItem]]) -> Iterator[tuple[EvalItem, Tensor]]:
        """Yield each item with its class ids, uint8 (H, W) at native size on the device.

        Logits are upsampled to the native size before argmax. With TTA the softmax is averaged over the passes.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in items:
                with torch.inference_mode():
                    images = normalize_images(torch.stack([item.pixels for item in batch]).to(self.device))
                    passes = [(axes, self._logits(images, axes)) for axes in TTA_FLIPS[self.tta]]
                    predictions = [self._class_ids(passes, row, item.size) for row, item in enumerate(batch)]
                yield from zip(batch, predictions, strict=True)
        finally:
            self.model.train(was_training)

    def _logits(self, images: Tensor, axes: tuple[int, ...]) -> Tensor:
        with self._autocast():
            logits: Tensor = self.model(images.flip(axes) if axes else images)
        return logits

    def _class_ids(self, passes: list[tuple[tuple[int, ...], Tensor]], row: int, size: tuple[int, int]) -> Tensor:
        if len(passes) == 1:
            scores = resize_logits(passes[0][1][row : row + 1], size)
        else:
            scores = sum(
                (resize_logits(logits[row : row + 1], size).flip(axes).softmax(1) for axes, logits in passes),
                start=torch.zeros((), device=self.device),
            )
        return scores[0].argmax(0).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])


def count(
    predictor: Predictor, dataset: SegmentationDataset, loading: EvalLoading, group: Group, label: str
) -> EvaluationCounts:
    """Counts of the whole data set, every image once over all ranks. Collective."""
    counts = EvaluationCounts.zeros(len(dataset), len(dataset.classes), len(dataset.groups), group.device)
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    items = predictor.predict(eval_loader(dataset, indices, loading))
    failure: UserError | None = None
    try:
        for item, prediction in progress(items, total=len(indices), label=label, visible=group.is_main):
            assert item.mask is not None
            truth = torch.from_numpy(item.mask).to(group.device)
            counts.add(item.index, dataset.group(item.index), prediction, truth, IGNORE_INDEX)
    except UserError as error:
        failure = error.with_traceback(None)  # its frames hold the loader
    # A damaged image on one rank must not leave the others waiting for its counts.
    group.raise_common(failure)
    return counts.reduce(group.sum)
