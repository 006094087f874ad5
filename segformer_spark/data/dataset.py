"""What a data set is to the rest of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.files import ReadFile, read_file

IGNORE_INDEX = 255
"""Label of pixels that neither train nor count, in every mask after decoding."""

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""(x_min, y_min, x_max, y_max) in pixels, inclusive, as SPARK's CSV has it."""


@dataclass(frozen=True)
class ClassInfo:
    """The classes of a data set.

    Attributes:
        names: name of class id 0, 1, ...
        colors: RGB of each class in pictures and colour masks.
        background: id left out of "mIoU without background", or None.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: int | None = 0

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Sample:
    """One labelled image: `image` uint8 (H, W, 3) RGB, `mask` uint8 (H, W) of class ids or IGNORE_INDEX.

    With `data.reduced_decode` the image may have 1/2, 1/4 or 1/8 of the mask's sides. `orientation` is the EXIF
    orientation by which viewers turn these pixels (`data.orientation.turn_upright`).
    """

    image: Image
    mask: Mask
    orientation: int = 1


class SegmentationDataset(Protocol):
    """An indexed set of labelled images. `categories` names what metrics are broken down by (may be empty)."""

    @property
    def classes(self) -> ClassInfo: ...

    @property
    def categories(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def load(self, index: int, read: ReadFile = read_file) -> Sample:
        """Decode one image and its mask, of files that `read` gives. Raises DataError naming the file."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name within the split, safe as a file name."""
        ...

    def category(self, index: int) -> int:
        """Index into `categories`; 0 when there are none."""
        ...

    def files(self, index: int) -> tuple[Path, Path]:
        """The image's file and the mask's."""
        ...

    def box(self, index: int) -> Box | None:
        """The labelled box of the object; None where the data set has none."""
        ...


@dataclass(frozen=True)
class Subset:
    """The given indices of a data set, in their order."""

    base: SegmentationDataset
    indices: Sequence[int]

    @property
    def classes(self) -> ClassInfo:
        return self.base.classes

    @property
    def categories(self) -> Sequence[str]:
        return self.base.categories

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int, read: ReadFile = read_file) -> Sample:
        return self.base.load(self.indices[index], read)

    def sample_id(self, index: int) -> str:
        return self.base.sample_id(self.indices[index])

    def category(self, index: int) -> int:
        return self.base.category(self.indices[index])

    def files(self, index: int) -> tuple[Path, Path]:
        return self.base.files(self.indices[index])

    def box(self, index: int) -> Box | None:
        return self.base.box(self.indices[index])


def parent(dataset: SegmentationDataset) -> tuple[SegmentationDataset, Sequence[int]]:
    """What a subset is of, and its indices there; of another data set itself and all of them."""
    if isinstance(dataset, Subset):
        return dataset.base, dataset.indices
    return dataset, range(len(dataset))


def fixed_subset(dataset: SegmentationDataset, size: int | None, seed: int) -> SegmentationDataset:
    """The same `size` random images for the same seed, in ascending order; all for None."""
    if size is None or size >= len(dataset):
        return dataset
    chosen = np.random.default_rng([seed, 0x5AB5E7]).choice(len(dataset), size=size, replace=False)
    return Subset(dataset, sorted(int(index) for index in chosen))
