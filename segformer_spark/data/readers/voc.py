"""Pascal VOC 2012, segmentation: 21 classes (Everingham et al. 2015).

<root>/VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg            <root> may also be VOCdevkit, or VOC2012 itself
.../SegmentationClass/2007_000032.png                          palette PNG: the index is the class, 255 the border
.../ImageSets/Segmentation/{train,val,trainval}.txt            names without extension; other lists work, too
"""

from __future__ import annotations

from pathlib import Path

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo
from segformer_spark.data.readers.pairs import PairDataset, read_lines, refuse_missing_files, relative_id

_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def _palette_color(index: int) -> tuple[int, int, int]:
    """The devkit's palette: bits 0, 3, 6 of the index are the high bits of red, bits 1, 4, 7 of green, 2, 5 of blue."""
    red, green, blue = (sum((index >> 3 * n + channel & 1) << 7 - n for n in range(3)) for channel in range(3))
    return red, green, blue


VOC_CLASSES = ClassInfo(_NAMES, tuple(_palette_color(index) for index in range(len(_NAMES))), background=0)


class VocDataset(PairDataset):
    """A list of VOC 2012, in its order."""

    classes = VOC_CLASSES
    label_colors = {index: _palette_color(index) for index in (*range(len(_NAMES)), 255)}  # noqa: RUF012 - not changed
    labels = {**{index: index for index in range(len(_NAMES))}, 255: IGNORE_INDEX}  # noqa: RUF012 - not changed

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """Read the list.

        Raises:
            DataError: no such list, or an image or mask that it names is missing.
        """
        home = next((path for path in (root / "VOCdevkit/VOC2012", root / "VOC2012") if path.is_dir()), root)
        self.images = home / "JPEGImages"
        lines = read_lines(home / "ImageSets" / "Segmentation" / f"{split}.txt", "names")
        names = [line.split()[0] for _, line in lines]
        super().__init__([(self.images / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png") for name in names])
        if check_files:
            refuse_missing_files(self.pairs)

    def sample_id(self, index: int) -> str:
        return relative_id(self.pairs[index][0], self.images)
