"""What data sets of image files and mask files share; each has its own layout and mask encoding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import Box, ClassInfo, Mask, Sample
from segformer_spark.data.decode import AS_STORED, Decoding, ImageFile, check_sizes, decode_rgb, open_image
from segformer_spark.data.files import ReadFile, composed, log_unused, on_disk, read_file, read_text, visible_files
from segformer_spark.data.masks import LabelColors, decode_index_mask
from segformer_spark.data.orientation import refuse_other_orientation
from segformer_spark.data.suffixes import PNG
from segformer_spark.data.tables import PathPairs
from segformer_spark.errors import DataError

_AMBIGUOUS = re.compile(r"[ %\udc80-\udcff]|^_|_$|_(?=_)|(?<=_)_")
_ESCAPED = re.compile(r"%(20|25|5F)")


class PairDataset:
    """A split as a list of (image, mask); a subclass sets `classes`, and `labels` or its own `decode_mask`.

    Attributes:
        labels: {label in the mask file: class id or IGNORE_INDEX}.
        label_colors: what palettes of masks must say, where the data set has fixed colours.
        pairs: (image, mask) files of the split, in order.
        needed_size: see `decode_rgb`; masks are decoded at their size in any case.
        decoding: how files are decoded.
    """

    classes: ClassInfo
    labels: Mapping[int, int]
    label_colors: LabelColors | None = None
    categories: Sequence[str] = ()
    needed_size: Size | None = None
    decoding: Decoding = AS_STORED

    def __init__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.pairs = PathPairs((on_disk(image), on_disk(mask)) for image, mask in pairs)

    @classmethod
    def from_config(cls, config: DataConfig, split: str, *, check_files: bool) -> Self:
        """The split that a configuration names; who needs more of the configuration overrides it."""
        return cls(Path(config.root), split, check_files=check_files)  # type: ignore[call-arg, arg-type]

    @classmethod
    def open(cls, config: DataConfig, split: str, *, check_files: bool = True, needed_size: Size | None = None) -> Self:
        """The split that a configuration names (see `open_dataset`)."""
        dataset = cls.from_config(config, split, check_files=check_files)
        dataset.needed_size, dataset.decoding = needed_size, Decoding.of(config)
        dataset._refuse_equal_ids()
        return dataset

    def _refuse_equal_ids(self) -> None:
        """Results are kept by id: of two images with one id, or one mask, the second would replace the first."""
        files: dict[str, Path] = {}
        masks: dict[Path, Path] = {}
        for index, (image, mask) in enumerate(self.pairs):
            name = self.sample_id(index)
            other = files.get(name, masks.get(mask))
            if other is not None:
                shared = f"one id, {name!r}" if name in files else f"one mask, {mask}"
                problem = "is in the split twice" if other == image else f"and {other} have {shared}"
                raise DataError(f"{image} {problem}", "Remove one of them, or rename it.")
            files[name] = masks[mask] = image

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int, read: ReadFile = read_file) -> Sample:
        image_path, mask_path = self.pairs[index]
        image_file, mask_file = (open_image(path, self.decoding, read) for path in (image_path, mask_path))
        if self.decoding.orientation is None:
            refuse_other_orientation(image_file.header, mask_file.header, image_path, mask_path)
        image, mask = decode_rgb(image_file, self.decoding, self.needed_size), self.decode_mask(mask_file)
        check_sizes(image, mask, image_path, mask_path, reduced=self.needed_size is not None)
        return Sample(image, mask, self.decoding.shown_orientation(image_file.header))

    def decode_mask(self, file: ImageFile) -> Mask:
        """Class ids of one mask."""
        return decode_index_mask(file, self.labels, self.decoding, self.label_colors)

    def sample_id(self, index: int) -> str:
        return self.pairs[index][0].stem

    def category(self, index: int) -> int:
        return 0

    def files(self, index: int) -> tuple[Path, Path]:
        return self.pairs[index]

    def box(self, index: int) -> Box | None:
        return None


def refuse_missing_files(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raise DataError naming the first missing image or mask. One listing per folder, not a stat per file."""
    folders = {path.parent for pair in pairs for path in pair}
    present = {folder: {path.name for path in folder.glob("*")} for folder in folders}
    missing = [(image, mask) for image, mask in pairs if mask.name not in present[mask.parent]]
    for image, _ in pairs:
        if image.name not in present[image.parent]:
            raise DataError(f"{image}: the split names this image, which does not exist")
    if missing:
        image, mask = missing[0]
        more = f" ({len(missing)} images have none)" if len(missing) > 1 else ""
        raise DataError(f"{image}: its mask {mask} does not exist{more}")


def log_masks_without_image(folder: Path, ending: str, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Count and name the masks below `folder`, of names with this ending, that belong to no image of the split."""
    masks = [path for path in visible_files(folder, PNG, "masks") if path.name.endswith(ending)]
    log_unused(folder, masks, [mask for _, mask in pairs], "they are masks without an image")


def relative_id(path: Path, folder: Path) -> str:
    """A file's name below `folder`, without its suffix, as an id: safe as a file name, equal for no two names.

    Slashes become two underscores; what would look like one is escaped as in URLs.
    """
    parts = path.relative_to(folder).with_suffix("").parts
    # Bytes of names that are not UTF-8 are U+DC80 to U+DCFF in Python (PEP 383).
    return "__".join(_AMBIGUOUS.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", composed(part)) for part in parts)


def former_id(sample_id: str) -> str:
    """The id of version 0.1 for the sample whose `relative_id` this is; one that is of 0.1 stays."""
    return _ESCAPED.sub(lambda found: "%" if found[1] == "25" else "_", sample_id).replace(" ", "_")


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a list with their numbers; without empty ones and comments.

    Raises:
        DataError: there is no such file, or nothing in it.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such list of {what}; check data.root and the split")
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path}: there are no {what} in this list")
    return lines
