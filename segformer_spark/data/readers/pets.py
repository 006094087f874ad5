"""Oxford-IIIT Pet: pet, background and the border between them (Parkhi et al. 2012).

<root>/images/Abyssinian_1.jpg                       some are PNG or GIF by content, or not RGB
<root>/annotations/trimaps/Abyssinian_1.png          1 pet, 2 background, 3 border
<root>/annotations/{trainval,test}.txt               lines "name class-id species breed-id"

There is no validation split: `train` and `val` are four fifths and a fifth of each breed's images in trainval.txt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo
from segformer_spark.data.readers.pairs import PairDataset, read_lines, refuse_missing_files
from segformer_spark.errors import DataError

PETS_CLASSES = ClassInfo(("pet", "background", "border"), ((220, 60, 60), (0, 0, 0), (250, 220, 80)), background=1)
_EVERY = 5


class PetsDataset(PairDataset):
    """`trainval` or `test` as listed, or `train` and `val` made of trainval."""

    classes = PETS_CLASSES
    labels = {1: 0, 2: 1, 3: 2}  # noqa: RUF012 - not changed

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """Read the list.

        Raises:
            DataError: no such list, a malformed line, or an image or trimap that it names is missing.
        """
        table = root / "annotations" / f"{'trainval' if split in ('train', 'val') else split}.txt"
        names = list(_names(table))
        if split in ("train", "val"):
            names = _part(names, validation=split == "val")
        masks = root / "annotations" / "trimaps"
        super().__init__([(root / "images" / f"{name}.jpg", masks / f"{name}.png") for name in names])
        if check_files:
            refuse_missing_files(self.pairs)


class PetsWithoutBorder(PetsDataset):
    """Two classes: the border neither trains nor counts."""

    classes = ClassInfo(PETS_CLASSES.names[:2], PETS_CLASSES.colors[:2], background=1)
    labels = {1: 0, 2: 1, 3: IGNORE_INDEX}  # noqa: RUF012 - not changed


def _names(table: Path) -> Iterator[str]:
    for number, line in read_lines(table, "images"):
        parts = line.split()
        if len(parts) != 4 or not all(part.isdigit() for part in parts[1:]):
            raise DataError(f"{table}:{number}: expected 'name class-id species breed-id', got {line!r}")
        yield parts[0]


def _part(names: list[str], *, validation: bool) -> list[str]:
    """Every fifth image of each breed, or the others."""
    seen: Counter[str] = Counter()
    chosen = []
    for name in names:
        breed = name.rpartition("_")[0]
        seen[breed] += 1
        if (seen[breed] % _EVERY == 0) == validation:
            chosen.append(name)
    return chosen
