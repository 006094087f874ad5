"""The part of an image that training sees, brought to the model's input size.

Modes (`augmentation.crop.mode`), H x W the input size and s drawn from `scale`:

- none: the whole image.
- random: H x W pixels of the native image.
- fixed: the image times s, then H x W of it, padded at the right and bottom (DeepLab, mmsegmentation).
- variable: s H x s W of the native image, no larger than fits into it at that ratio, resized to H x W.
- original: the image times s, then s H x s W of that, resized to H x W: both factors cancel, so the part of the scene
  does not vary. Kept to repeat an earlier study.
- box: a window of ratio H : W around the object, with margin and jitter.
"""

from __future__ import annotations

import numpy as np

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import CropConfig
from segformer_spark.data.dataset import IGNORE_INDEX, Box, Image, Mask, Sample
from segformer_spark.data.resize import MEAN_COLOR, resize_image, resize_mask
from segformer_spark.data.window import Window, cut_image, cut_mask, window_around
from segformer_spark.errors import DataError

_ATTEMPTS = 10


class TrainingView:
    """Sample of any size -> sample of `size` (height, width)."""

    def __init__(self, size: Size, config: CropConfig) -> None:
        self.size, self.config = size, config

    def __call__(self, sample: Sample, box: Box | None, name: str, rng: np.random.Generator) -> Sample:
        """Choose and cut the view.

        Args:
            box: the object, for mode box; without one the whole image is shown.
            name: for error messages.

        Raises:
            DataError: mode random, and the image is smaller than the crop.
        """
        config = self.config
        if config.mode == "none" or (config.mode == "box" and (box is None or rng.random() >= config.share)):
            return Sample(resize_image(sample.image, self.size), resize_mask(sample.mask, self.size))
        if config.mode == "box":
            assert box is not None
            window = self._around(box, sample.mask.shape, rng)
            return self._shown(sample.image, sample.mask, window)
        image, mask, (high, wide) = self._scaled(sample, rng)
        height, width = mask.shape
        if config.mode == "random" and (high > height or wide > width):
            raise DataError(
                f"{name} is {width}x{height}, smaller than the crop of {wide}x{high}: lower data.image_size, or set "
                "augmentation.crop.mode to fixed (pads) or variable (takes a smaller crop)"
            )
        if config.mode in ("variable", "original"):
            high, wide = _fitting((high, wide), (height, width))
        window = self._choose(mask, (high, wide), rng)
        return self._shown(image, mask, window)

    def _shown(self, image: Image, mask: Mask, window: Window) -> Sample:
        """The window's pixels at the model's input size."""
        image, mask = cut_image(image, window, MEAN_COLOR), cut_mask(mask, window)
        return Sample(resize_image(image, self.size), resize_mask(mask, self.size))

    def _scaled(self, sample: Sample, rng: np.random.Generator) -> tuple[Image, Mask, Size]:
        """The image and mask to crop from, and the size of the crop."""
        config = self.config
        if config.mode == "random":
            return sample.image, sample.mask, self.size
        scale = rng.uniform(*config.scale)
        if config.mode == "variable":
            return sample.image, sample.mask, _times(self.size, scale)
        height, width = sample.mask.shape
        factor = scale
        if config.mode == "fixed" and config.base == "short_side":
            factor = max(scale * self.size[0] / height, scale * self.size[1] / width)
        size = _times((height, width), factor)
        crop = self.size if config.mode == "fixed" else _times(self.size, scale)
        return resize_image(sample.image, size), resize_mask(sample.mask, size), crop

    def _choose(self, mask: Mask, size: Size, rng: np.random.Generator) -> Window:
        """A random window that shows something labelled and, if asked, not too much of one class."""
        (height, width), (high, wide) = mask.shape, size
        window = Window(0, 0, high, wide)
        for _ in range(_ATTEMPTS):
            top = int(rng.integers(0, max(0, height - high) + 1))
            left = int(rng.integers(0, max(0, width - wide) + 1))
            window = Window(top, left, high, wide)
            if self._is_balanced(mask[top : top + high, left : left + wide]):
                return window
        labelled = np.argwhere(mask != IGNORE_INDEX)
        if len(labelled) == 0 or self._shows_labels(mask, window):
            return window
        row, column = labelled[rng.integers(len(labelled))]
        top, left = (
            int(min(max(0, center - side // 2), max(0, length - side)))
            for center, side, length in ((row, high, height), (column, wide, width))
        )
        return Window(top, left, high, wide)

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
        shift = (float(down) / 2, float(right) / 2)
        return window_around(box, margin, (size[0], size[1]), ratio=self.size, shift=shift)


def _times(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fitting(size: Size, image: Size) -> Size:
    """`size`, or the largest of its ratio that fits into an image."""
    factor = min(1.0, image[0] / size[0], image[1] / size[1])
    high, wide = _times(size, factor)
    return min(high, image[0]), min(wide, image[1])
