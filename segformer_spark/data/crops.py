"""The part of an image that training sees, brought to the model's input size.

Modes (`augmentation.crop.mode`), S the input size and s drawn from `scale`:

- none: the whole image.
- random: S x S pixels of the native image.
- fixed: the image times s, then S x S of it, padded at the right and bottom (DeepLab, mmsegmentation).
- variable: s S x s S of the native image, no larger than it, resized to S x S.
- original: the image times s, then s S x s S of that, resized to S x S: both factors cancel, so the part of the scene
  does not vary. Kept to repeat an earlier study.
- box: a square around the object, with margin and jitter.
"""

from __future__ import annotations

import numpy as np

from segformer_spark.config.schema import CropConfig
from segformer_spark.data.dataset import IGNORE_INDEX, Box, Image, Mask, Sample
from segformer_spark.data.resize import MEAN_COLOR, resize_image, resize_mask
from segformer_spark.data.window import Window, cut_image, cut_mask, square_around
from segformer_spark.errors import DataError

_ATTEMPTS = 10


class TrainingView:
    """Sample of any size -> sample of (S, S)."""

    def __init__(self, image_size: int, config: CropConfig) -> None:
        self.side, self.config = image_size, config

    def __call__(self, sample: Sample, box: Box | None, name: str, rng: np.random.Generator) -> Sample:
        """Choose and cut the view.

        Args:
            box: the object, for mode box; without one the whole image is shown.
            name: for error messages.

        Raises:
            DataError: mode random, and the image is smaller than the crop.
        """
        config, target = self.config, (self.side, self.side)
        if config.mode == "none" or (config.mode == "box" and (box is None or rng.random() >= config.share)):
            return Sample(resize_image(sample.image, target), resize_mask(sample.mask, target))
        if config.mode == "box":
            assert box is not None
            window = self._around(box, sample.mask.shape, rng)
            return self._shown(sample.image, sample.mask, window)
        image, mask, side = self._scaled(sample, rng)
        if config.mode == "random" and side > min(mask.shape):
            height, width = mask.shape
            raise DataError(
                f"{name} is {width}x{height}, smaller than the crop of {side}x{side}: lower data.image_size, or set "
                "augmentation.crop.mode to fixed (pads) or variable (takes a smaller crop)"
            )
        if config.mode in ("variable", "original"):
            side = min(side, *mask.shape)
        window = self._choose(mask, side, rng)
        return self._shown(image, mask, window)

    def _shown(self, image: Image, mask: Mask, window: Window) -> Sample:
        """The window's pixels at the model's input size."""
        target = (self.side, self.side)
        image, mask = cut_image(image, window, MEAN_COLOR), cut_mask(mask, window)
        return Sample(resize_image(image, target), resize_mask(mask, target))

    def _scaled(self, sample: Sample, rng: np.random.Generator) -> tuple[Image, Mask, int]:
        """The image and mask to crop from, and the side of the crop."""
        config = self.config
        if config.mode == "random":
            return sample.image, sample.mask, self.side
        scale = rng.uniform(*config.scale)
        if config.mode == "variable":
            return sample.image, sample.mask, max(1, round(scale * self.side))
        height, width = sample.mask.shape
        factor = scale
        if config.mode == "fixed" and config.base == "short_side":
            factor = scale * self.side / min(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        side = self.side if config.mode == "fixed" else max(1, round(scale * self.side))
        return resize_image(sample.image, size), resize_mask(sample.mask, size), side

    def _choose(self, mask: Mask, side: int, rng: np.random.Generator) -> Window:
        """A random window that shows something labelled and, if asked, not too much of one class."""
        height, width = mask.shape
        window = Window(0, 0, side, side)
        for _ in range(_ATTEMPTS):
            top, left = (int(rng.integers(0, max(0, length - side) + 1)) for length in (height, width))
            window = Window(top, left, side, side)
            if self._is_balanced(mask[top : top + side, left : left + side]):
                return window
        labelled = np.argwhere(mask != IGNORE_INDEX)
        if len(labelled) == 0 or self._shows_labels(mask, window):
            return window
        row, column = labelled[rng.integers(len(labelled))]
        top, left = (
            int(min(max(0, center - side // 2), max(0, length - side)))
            for center, length in ((row, height), (column, width))
        )
        return Window(top, left, side, side)

    def _is_balanced(self, part: Mask) -> bool:
        counts = np.bincount(part[part != IGNORE_INDEX], minlength=1)
        total = int(counts.sum())
        if total == 0:
            return False
        limit = self.config.max_class_share
        return limit is None or int(counts.max()) <= limit * total

    @staticmethod
    def _shows_labels(mask: Mask, window: Window) -> bool:
        part = mask[window.top : window.top + window.height, window.left : window.left + window.width]
        return bool((part != IGNORE_INDEX).any())

    def _around(self, box: Box, size: tuple[int, ...], rng: np.random.Generator) -> Window:
        config = self.config
        down, right, grow = rng.uniform(-config.jitter, config.jitter, 3)
        margin = max(0.0, config.margin + float(grow) / 2)
        return square_around(box, margin, (size[0], size[1]), shift=(float(down) / 2, float(right) / 2))
