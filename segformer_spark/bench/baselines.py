"""The baselines that this package is compared with, built from installed packages; nothing else uses them.

- transformers: SegformerForSemanticSegmentation under a plain step as its Trainer does it (fused AdamW, clipping at 1),
  with the attention that its configuration names.
- smp: segmentation_models_pytorch's Segformer, whose decoder is 256 wide whatever the encoder.
- original: the implementation that this project replaced: PIL and a float distance to every colour; transformers'
  model with full-size logits, and their accuracy at every step.
- evaluate: mean IoU in NumPy as the metric of Hugging Face's `evaluate` computes it: a histogram per class and image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.bench.workload import (
    LoaderSpec,
    LossSpec,
    MetricSpec,
    ModelSpec,
    Workload,
    label_maps,
    names,
    random_batch,
    random_logits,
)
from segformer_spark.config.load import load_config
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.readers.spark import SPARK_CLASSES, read_rows
from segformer_spark.data.transforms import build_augmentation, normalize_images
from segformer_spark.evaluation.predict import autocast
from segformer_spark.models.segformer import segformer_config


def _transformers(spec: ModelSpec) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    config = segformer_config(spec.variant, names(spec.classes))
    config._attn_implementation = spec.attention
    model: nn.Module = SegformerForSemanticSegmentation(config)
    return model


def _smp(spec: ModelSpec) -> nn.Module:
    model: nn.Module = smp.Segformer(f"mit_{spec.variant}", encoder_weights=None, classes=spec.classes)
    return model


@dataclass
class _Model(Workload):
    """A baseline's model."""

    spec: ModelSpec

    def build(self) -> nn.Module:
        """The model with random weights on the workload's device."""
        model = (_smp if self.spec.implementation == "smp" else _transformers)(self.spec).to(self.spec.device)
        return model.bfloat16() if self.spec.narrow_parameters else model

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward pass."""
        return autocast(torch.device(self.spec.device), "fp32" if self.spec.narrow_parameters else self.spec.precision)


class _Train(_Model):
    def prepare(self) -> None:
        self._model = self.build().train()
        images, labels = random_batch(self.spec.batch, self.spec.input_size, self.spec.classes)
        normalized = normalize_images(images).to(self.spec.device)
        self._images = normalized.bfloat16() if self.spec.narrow_parameters else normalized
        self._labels = labels.long().to(self.spec.device)
        if self.spec.compile != "off":
            self._model.compile(dynamic=False)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=6e-5, weight_decay=0.01, fused=True)

    def run(self) -> None:
        with self.autocast():
            loss: Tensor
            if self.spec.implementation == "transformers":
                loss = self._model(self._images, labels=self._labels).loss
            else:
                out = self._model(self._images)
                loss = self._loss(out if isinstance(out, Tensor) else out.logits)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._images.is_cuda:
            torch.cuda.synchronize()

    def _loss(self, logits: Tensor) -> Tensor:
        if self.spec.implementation == "original":
            logits = functional.interpolate(logits, size=self._labels.shape[-2:], mode="bilinear", align_corners=False)
            float((logits.argmax(1) == self._labels).float().mean())
        return functional.cross_entropy(logits, self._labels, ignore_index=IGNORE_INDEX)


class _Infer(_Model):
    def prepare(self) -> None:
        self._model = self.build().eval()
        self._images = random_batch(self.spec.batch, self.spec.input_size, self.spec.classes)[0]

    @torch.no_grad()
    def run(self) -> None:
        with self.autocast():
            out = self._model(normalize_images(self._images).to(self.spec.device))
        logits = out if isinstance(out, Tensor) else out.logits
        functional.interpolate(logits, size=self._images.shape[-2:], mode="bilinear").argmax(1).cpu()


@dataclass
class _FullSizeLoss(Workload):
    """Cross-entropy and Dice of the full-size logits, layer by layer."""

    spec: LossSpec

    def prepare(self) -> None:
        self._logits, labels = random_logits(self.spec.batch, self.spec.input_size, self.spec.classes)
        self._labels = labels.long()

    def run(self) -> None:
        self._logits.grad = None
        logits = functional.interpolate(self._logits, size=self._labels.shape[-2:], mode="bilinear")
        probabilities = logits.softmax(1)
        truth = functional.one_hot(self._labels, logits.shape[1]).permute(0, 3, 1, 2).float()
        overlap, total = (probabilities * truth).sum((0, 2, 3)), (probabilities + truth).sum((0, 2, 3))
        dice = 1 - ((2 * overlap + 1) / (total + 1)).mean()
        (0.5 * functional.cross_entropy(logits, self._labels) + 0.5 * dice).backward()  # type: ignore[no-untyped-call]


@dataclass
class _OriginalLoader(Workload):
    spec: LoaderSpec

    def prepare(self) -> None:
        config = load_config(overrides=self.spec.settings).config
        self._rows = read_rows(Path(self.spec.root), "train")
        self._augmentation = build_augmentation(config.augmentation)
        self._next = 0

    def run(self) -> None:
        for _ in range(self.spec.images):
            row = self._rows[self._next % len(self._rows)]
            self._next += 1
            self._sample(row.image, row.mask)

    def _sample(self, image_path: Path, mask_path: Path) -> tuple[Tensor, Tensor]:
        height, width = self.spec.input_size
        image = np.array(Image.open(image_path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        colors = np.array(Image.open(mask_path).convert("RGB").resize((width, height), Image.Resampling.NEAREST))
        palette = np.array(SPARK_CLASSES.colors, np.float32)
        distances = np.linalg.norm(colors[:, :, None].astype(np.float32) - palette[None, None], axis=-1)
        out = self._augmentation(image=image, mask=distances.argmin(-1).astype(np.uint8))
        pixels = torch.from_numpy(out["image"]).permute(2, 0, 1)[None]
        return normalize_images(pixels)[0], torch.from_numpy(out["mask"]).long()


@dataclass
class _NumpyMeanIou(Workload):
    spec: MetricSpec

    def prepare(self) -> None:
        predicted, truth = label_maps(self.spec.images, self.spec.input_size, self.spec.classes)
        self._predicted, self._truth = predicted.numpy(), truth.numpy()

    def run(self) -> None:
        classes = self.spec.classes
        totals = np.zeros((4, classes), np.float64)
        for predicted, truth in zip(self._predicted, self._truth, strict=True):
            valid = np.not_equal(truth, IGNORE_INDEX)
            predicted, truth = predicted[valid], np.array(truth)[valid]
            agreed = predicted[predicted == truth]
            overlap, of_predicted, of_truth = (
                np.histogram(values, bins=classes, range=(0, classes - 1))[0] for values in (agreed, predicted, truth)
            )
            totals += overlap, of_predicted + of_truth - overlap, of_predicted, of_truth


BASELINES: dict[tuple[str, str], Callable[[Any], Workload]] = {
    ("train", "transformers"): _Train,
    ("train", "smp"): _Train,
    ("train", "original"): _Train,
    ("infer", "transformers"): _Infer,
    ("infer", "smp"): _Infer,
    ("loss", "full size"): _FullSizeLoss,
    ("loader", "original"): _OriginalLoader,
    ("metric", "numpy"): _NumpyMeanIou,
}
