"""Image and mask -> training input. The only place that uses albumentations.

Crop or resize, mosaic, photometric distortion, then the rest. The augmentation of sample i in epoch e depends on
(seed, e, i) alone, whatever worker or rank computes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import AugmentationConfig, Config
from segformer_spark.data.crops import TrainingView
from segformer_spark.data.dataset import IGNORE_INDEX, Box, Image, Mask, Sample, SegmentationDataset
from segformer_spark.data.flip_pairs import flipped_ids
from segformer_spark.data.photometric import distort
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD, MEAN_COLOR, resize_mask
from segformer_spark.data.window import object_box
from segformer_spark.errors import DataError
from segformer_spark.kernels.normalize import fused_normalize, plain_normalize
from segformer_spark.kernels.registry import runs_fused
from segformer_spark.kernels.select import Arithmetic

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise
import albumentations as A

_ATTEMPTS = 10
_CHOICES = 0xC409
"""Separates the draws of crop, mosaic and photometric distortion from albumentations'."""


class _HorizontalFlip(A.HorizontalFlip):  # type: ignore[misc]
    """A left-right flip whose mask exchanges the classes of `flipped`, the id that each id becomes."""

    def __init__(self, flipped: Sequence[int], p: float) -> None:
        super().__init__(p=p)
        self.flipped = np.arange(256, dtype=np.uint8)
        self.flipped[: len(flipped)] = flipped

    def apply_to_mask(self, mask: Mask, *args: Any, **params: Any) -> Mask:
        turned: Mask = self.flipped[super().apply_to_mask(mask, *args, **params)]
        return turned


def build_augmentation(config: AugmentationConfig, flipped: Sequence[int] = ()) -> A.Compose:
    """The augmentation of one image with its mask; a switch of 0 leaves its transform out.

    `flipped`: the class id that each id becomes in a flipped image; without it they stay.

    Borders that rotation, scale and shift uncover, and rectangles that are blanked, become the ImageNet mean and
    IGNORE_INDEX.
    """
    transforms: list[A.BasicTransform] = []
    if config.horizontal_flip:
        transforms.append(_HorizontalFlip(flipped, config.horizontal_flip))
    if config.vertical_flip:
        transforms.append(A.VerticalFlip(p=config.vertical_flip))
    if config.affine:
        transforms.append(
            A.Affine(
                rotate=(-config.rotation_degrees, config.rotation_degrees),
                scale=config.scale,
                keep_ratio=True,
                translate_percent=(-config.shift, config.shift),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                border_mode=cv2.BORDER_CONSTANT,
                fill=MEAN_COLOR,
                fill_mask=IGNORE_INDEX,
                p=config.affine,
            )
        )
    if config.color:
        transforms.append(
            A.ColorJitter(
                brightness=(1 - config.brightness, 1 + config.brightness),
                contrast=(1 - config.contrast, 1 + config.contrast),
                saturation=(1 - config.saturation, 1 + config.saturation),
                hue=(-config.hue, config.hue),
                p=config.color,
            )
        )
    if config.blur:
        transforms.append(A.GaussianBlur(blur_limit=0, sigma_limit=config.blur_sigma, p=config.blur))
    if config.coarse_dropout:
        sides = (min(0.05, config.coarse_dropout_size), config.coarse_dropout_size)
        transforms.append(
            A.CoarseDropout(
                num_holes_range=(1, config.coarse_dropout_holes),
                hole_height_range=sides,
                hole_width_range=sides,
                fill=MEAN_COLOR,
                fill_mask=IGNORE_INDEX,
                p=config.coarse_dropout,
            )
        )
    return A.Compose(transforms)


@dataclass(frozen=True)
class NativeSample:
    """A sample as it is on disk, with what the transforms need to know about it."""

    sample: Sample
    box: Box | None
    name: str


def load_native(dataset: SegmentationDataset, index: int) -> NativeSample:
    """Decode a sample; without a labelled box, the box around its foreground, if the set has a background."""
    sample, box, background = dataset.load(index), dataset.box(index), dataset.classes.background
    if box is None and background is not None:
        box = object_box(sample.mask, background)
    return NativeSample(sample, box, dataset.sample_id(index))


class TrainTransform:
    """View, mosaic, photometric distortion, augmentation."""

    def __init__(self, size: Size, config: AugmentationConfig, seed: int, flipped: Sequence[int] = ()) -> None:
        self.size, self.config, self.seed = size, config, seed
        self.view = TrainingView(size, config.crop)
        self.augmentation = build_augmentation(config, flipped)

    @classmethod
    def of(cls, config: Config, class_names: Sequence[str]) -> TrainTransform:
        """The transform of a training with these classes."""
        flipped = flipped_ids(class_names, config.data.flip_pairs or ())
        return cls(config.data.input_size, config.augmentation, config.experiment.seed, flipped)

    def partners(self, epoch: int, index: int, num_images: int) -> list[int]:
        """The images that sample `index` is joined with in `epoch`: three for a mosaic, else none."""
        if not self.config.mosaic:
            return []
        rng = self._generator(epoch, index, 1)
        if rng.random() >= self.config.mosaic:
            return []
        return [int(other) for other in rng.integers(0, num_images, 3)]

    def __call__(self, samples: Sequence[NativeSample], epoch: int, index: int) -> Sample:
        """The version of a sample in `epoch`; uint8 (H, W, 3) and (H, W), at `size`.

        Args:
            samples: the sample, and its partners.

        Raises:
            DataError: the crop does not fit, or the augmentation leaves no labelled pixel.
        """
        out = self._draw(samples, epoch, index, [])
        if _is_labelled(out.mask) or not any(self._would_show_labels(one.sample) for one in samples):
            return out
        for attempt in range(1, _ATTEMPTS):
            # The second half of the attempts leaves a mosaic's partners out.
            drawn = samples if attempt < _ATTEMPTS // 2 else samples[:1]
            out = self._draw(drawn, epoch, index, [attempt])
            if _is_labelled(out.mask):
                return out
        raise DataError(
            f"{samples[0].name}: augmentation left no labelled pixel in {_ATTEMPTS} attempts; lower "
            "augmentation.coarse_dropout_size, coarse_dropout_holes, shift or scale, or set another crop.mode"
        )

    def _would_show_labels(self, sample: Sample) -> bool:
        """Whether the whole image, resized, has a label: what resizing alone loses is not augmentation's doing."""
        return _is_labelled(resize_mask(sample.mask, self.size))

    def _draw(self, samples: Sequence[NativeSample], epoch: int, index: int, again: list[int]) -> Sample:
        rng = self._generator(epoch, index, 0, *again)
        views = [self.view(one.sample, one.box, one.name, rng) for one in samples]
        view = views[0] if len(views) == 1 else join_mosaic(views, rng)
        if self.config.photometric and rng.random() < self.config.photometric:
            view = Sample(distort(view.image, rng), view.mask)
        if not self.augmentation.transforms:
            return view
        entropy = np.random.SeedSequence([self.seed, epoch, index, *again]).generate_state(1)[0]
        self.augmentation.set_random_seed(int(entropy))
        out = self.augmentation(image=view.image, mask=view.mask)
        return Sample(out["image"], out["mask"])

    def _generator(self, epoch: int, index: int, purpose: int, *again: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, index, _CHOICES + purpose, *again])


def _is_labelled(mask: Mask) -> bool:
    return bool((mask != IGNORE_INDEX).any())


def join_mosaic(views: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Four samples of (H, W) -> one: a crop of each around a random centre between 1/4 and 3/4 of the sides."""
    high, wide = views[0].mask.shape
    row, column = (int(rng.integers(side // 4, side - side // 4 + 1)) for side in (high, wide))
    image, mask = np.empty_like(views[0].image), np.empty_like(views[0].mask)
    corners = [(slice(0, row), slice(0, column)), (slice(0, row), slice(column, wide))]
    corners += [(slice(row, high), slice(0, column)), (slice(row, high), slice(column, wide))]
    for view, (rows, columns) in zip(views, corners, strict=True):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        top, left = int(rng.integers(0, high - height + 1)), int(rng.integers(0, wide - width + 1))
        image[rows, columns] = view.image[top : top + height, left : left + width]
        mask[rows, columns] = view.mask[top : top + height, left : left + width]
    return Sample(image, mask)


def image_to_tensor(image: Image) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize_images(images: torch.Tensor, arithmetic: Arithmetic = "cpu") -> torch.Tensor:
    """(B, 3, H, W) uint8 -> float32 with the ImageNet mean and standard deviation, on the images' device; by a kernel
    of this package channels last in memory."""
    if arithmetic == "gpu" and runs_fused(["normalize"], images.device):
        return fused_normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    return plain_normalize(images, IMAGENET_MEAN, IMAGENET_STD)
