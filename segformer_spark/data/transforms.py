"""Image and mask -> model input. The only place that uses albumentations.

Training: resize, then augment; evaluation: resize only. The augmentation of sample i in epoch e depends on
(seed, e, i) alone, whatever worker or rank computes it.
"""

from __future__ import annotations

import os

import cv2
import numpy as np
import torch

from segformer_spark.config.schema import AugmentationConfig
from segformer_spark.data.dataset import IGNORE_INDEX, Image, Mask, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise
import albumentations as A

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILL = tuple(round(255 * channel) for channel in IMAGENET_MEAN)


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize to (height, width): area-averaged when shrinking, bilinear when growing."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Image = cv2.resize(image, size[::-1], interpolation=method)
    return resized


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize class ids to (height, width), nearest neighbour with half-pixel centres as the image's."""
    if mask.shape == size:
        return mask
    resized: Mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def build_augmentation(config: AugmentationConfig) -> A.Compose:
    """The augmentation of one image with its mask; a switch of 0 leaves its transform out.

    Borders that rotation, scale and shift uncover become the ImageNet mean and IGNORE_INDEX.
    """
    transforms: list[A.BasicTransform] = []
    if config.horizontal_flip:
        transforms.append(A.HorizontalFlip(p=config.horizontal_flip))
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
                fill=_FILL,
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
    return A.Compose(transforms)


class TrainTransform:
    """Resize and augment."""

    def __init__(self, image_size: int, config: AugmentationConfig, seed: int) -> None:
        self.size = (image_size, image_size)
        self.seed = seed
        self.augmentation = build_augmentation(config)

    def __call__(self, sample: Sample, epoch: int, index: int) -> Sample:
        """The sample's version in `epoch`; uint8 (S, S, 3) and (S, S)."""
        image, mask = resize_image(sample.image, self.size), resize_mask(sample.mask, self.size)
        if not self.augmentation.transforms:
            return Sample(image, mask)
        entropy = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]
        self.augmentation.set_random_seed(int(entropy))
        out = self.augmentation(image=image, mask=mask)
        return Sample(out["image"], out["mask"])


def image_to_tensor(image: Image) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize_images(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> float32 with the ImageNet mean and standard deviation, on the images' device."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255.0 - mean) / std
