"""CamVid in SegNet's split: road scenes, 480 x 360, 11 classes (Brostow et al. 2009; Badrinarayanan et al. 2017).

<root>/{train,val,test}/*.png or *.jpg      images
<root>/{train,val,test}annot/*.png          one channel, labels 0..11, 11 is void
<root>/{train,val,test}.txt                 two paths per line, absolute (/SegNet/CamVid/...): their tails are kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo
from segformer_spark.data.files import on_disk, read_text
from segformer_spark.data.readers.pairs import PairDataset, relative_id
from segformer_spark.data.suffixes import JPEG, PNG
from segformer_spark.errors import DataError

CAMVID_CLASSES = ClassInfo(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    background=None,
)
VOID = 11

_LABELS = {**{label: label for label in range(len(CAMVID_CLASSES))}, VOID: IGNORE_INDEX}


@dataclass(frozen=True)
class _Line:
    image: Path
    mask: Path
    number: int


class CamVidDataset(PairDataset):
    """A split of CamVid, in the order of its list."""

    classes = CAMVID_CLASSES
    labels = _LABELS

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """Read the list.

        Args:
            check_files: refuse lines without their files; False leaves that to `load`.

        Raises:
            DataError: no such list, a malformed line, or a line without its files.
        """
        lines = _read_list(root, split)
        if check_files:
            _check_files(lines, root / f"{split}.txt")
        super().__init__([(line.image, line.mask) for line in lines])
        folders = {line.image.parent for line in lines}
        self._images = folders.pop() if len(folders) == 1 else root

    def sample_id(self, index: int) -> str:
        """The name; with its folder, where images of several folders are listed."""
        return relative_id(self.pairs[index][0], self._images)


def _read_list(root: Path, split: str) -> list[_Line]:
    table = root / f"{split}.txt"
    if not table.is_file():
        found = sorted(path.stem for path in root.glob("*.txt")) if root.is_dir() else []
        raise DataError(
            f"{table}: there is no such split of CamVid; {root} has {', '.join(found) or 'no lists'}. "
            "Set data.root to the folder with train.txt and val.txt (or DATA_ROOT, which is read with --from-env)"
        )
    lines = []
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2 or any(len(Path(part).parts) < 2 for part in parts):
            raise DataError(f"{table}:{number}: expected two paths, of an image and of its mask, got {line!r}")
        image, mask = (on_disk(root.joinpath(*Path(part).parts[-2:])) for part in parts)
        if not Path(parts[0]).name.startswith("."):
            lines.append(_Line(_either_suffix(image), mask, number))
    if not lines:
        raise DataError(f"{table}: the split has no images")
    return lines


def _either_suffix(path: Path) -> Path:
    """Copies of the set hold the images as PNG or as JPEG, whatever the list says."""
    others = (path.with_suffix(suffix) for suffix in (*PNG, *JPEG))
    return path if path.is_file() else next((other for other in others if other.is_file()), path)


def _check_files(lines: Sequence[_Line], table: Path) -> None:
    for line in lines:
        for path in (line.image, line.mask):
            if not path.is_file():
                raise DataError(f"{table}:{line.number}: the line names {path}, which does not exist")
