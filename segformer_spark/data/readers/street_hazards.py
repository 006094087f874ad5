"""StreetHazards: 13 classes of driving scenes, and anomalies in the test split (Hendrycks et al. 2022, CAOS).

<root>/train/{images,annotations}/{training,validation}/<town>/N.png       1280 x 720
<root>/test/{images,annotations}/test/<town>/N.png
<root>/{train,test}/*.odgt       lists with fpath_img and fpath_segm, relative to the list; folders are read without one

Masks hold 1 to 14: the class plus one, 14 is the anomaly. Class 0, "unlabeled", is trained on as any other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo
from segformer_spark.data.files import read_text, visible_files
from segformer_spark.data.masks import read_index_mask
from segformer_spark.data.readers.pairs import PairDataset, log_masks_without_image, refuse_missing_files
from segformer_spark.data.suffixes import PNG
from segformer_spark.errors import DataError

_TABLE = (
    ("unlabeled", (0, 0, 0)),
    ("building", (70, 70, 70)),
    ("fence", (190, 153, 153)),
    ("other", (250, 170, 160)),
    ("pedestrian", (220, 20, 60)),
    ("pole", (153, 153, 153)),
    ("road line", (157, 234, 50)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("vegetation", (107, 142, 35)),
    ("car", (0, 0, 142)),
    ("wall", (102, 102, 156)),
    ("traffic sign", (220, 220, 0)),
)
STREET_HAZARDS_CLASSES = ClassInfo(
    tuple(name for name, _ in _TABLE), tuple(color for _, color in _TABLE), background=None
)
ANOMALY_LABEL = len(_TABLE) + 1
_KNOWN = {label: label - 1 for label in range(1, ANOMALY_LABEL)}
_IS_ANOMALY = {**dict.fromkeys(_KNOWN, 0), ANOMALY_LABEL: 1}
_FOLDERS = {"train": ("train", "training"), "val": ("train", "validation"), "test": ("test", "test")}


class StreetHazardsDataset(PairDataset):
    """`train`, `val` or `test`. In `test` anomalies are no class: segmentation ignores them, `anomalies` gives them."""

    classes = STREET_HAZARDS_CLASSES

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """Read the list, or the folders.

        Raises:
            DataError: no such split, a malformed list, or an image or mask that it names is missing.
        """
        if split not in _FOLDERS:
            raise DataError(f"data: StreetHazards has the splits {', '.join(_FOLDERS)}, not {split!r}")
        part, folder = _FOLDERS[split]
        lists = sorted(path for path in (root / part).glob("*.odgt") if path.stem in (split, folder))
        pairs = _from_list(lists[0]) if lists else _from_folders(root / part, folder)
        super().__init__(pairs)
        self.labels = {**_KNOWN, ANOMALY_LABEL: IGNORE_INDEX} if split == "test" else _KNOWN
        self.categories = tuple(sorted({image.parent.name for image, _ in pairs}))
        if check_files:
            refuse_missing_files(pairs)
            if not lists:
                log_masks_without_image(root / part / "annotations" / folder, ".png", pairs)

    def anomalies(self, index: int) -> NDArray[np.bool_]:
        """(H, W): whether a pixel belongs to an anomaly."""
        return read_index_mask(self.pairs[index][1], _IS_ANOMALY, decoding=self.decoding).astype(np.bool_)

    def sample_id(self, index: int) -> str:
        """With the town: numbers repeat."""
        image = self.pairs[index][0]
        return f"{image.parent.name}__{image.stem}"

    def category(self, index: int) -> int:
        return self.categories.index(self.pairs[index][0].parent.name)


def read_odgt(path: Path) -> list[dict[str, Any]]:
    """The entries of a list: one JSON array, or one JSON object per line.

    Raises:
        DataError: neither, or there is nothing in it.
    """
    text = read_text(path).strip()
    try:
        entries = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise DataError(f"{path}: this is not a list of JSON objects that can be read: {error}") from error
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: expected JSON objects with fpath_img and fpath_segm")
    return list(entries)


def _from_list(path: Path) -> list[tuple[Path, Path]]:
    try:
        return [(path.parent / entry["fpath_img"], path.parent / entry["fpath_segm"]) for entry in read_odgt(path)]
    except KeyError as error:
        raise DataError(f"{path}: an entry has no {error}") from error


def _from_folders(part: Path, folder: str) -> list[tuple[Path, Path]]:
    images = part / "images" / folder
    masks = part / "annotations" / folder
    return [(image, masks / image.relative_to(images)) for image in visible_files(images, PNG, "images")]
