"""SPARK stream 1: spacecraft body and solar panels (University of Luxembourg, SPARK 2024 Utils README).

    <root>/images/<Class>/{train,val}/image_00001_img.jpg
    <root>/mask/<Class>/{train,val}/image_00001_layer.jpg     masks are JPEG
    <root>/{train,val}.csv                                    Image name, Mask name, Class, Bounding box

File names repeat across classes: only (class, split, name) is unique.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformer_spark.data.dataset import Box, ClassInfo, Mask
from segformer_spark.data.decode import ImageFile
from segformer_spark.data.files import on_disk, read_text
from segformer_spark.data.masks import decode_color_mask
from segformer_spark.data.readers.pairs import PairDataset
from segformer_spark.data.tables import BoxTable
from segformer_spark.errors import DataError

SPARK_CLASSES = ClassInfo(
    names=("background", "body", "panels"),
    colors=((0, 0, 0), (255, 0, 0), (0, 0, 255)),
    background=0,
)
SPACECRAFT = (
    "VenusExpress",
    "Cheops",
    "LisaPathfinder",
    "ObservationSat1",
    "Proba2",
    "Proba3",
    "Proba3ocs",
    "Smart1",
    "Soho",
    "XMM Newton",
)
CSV_COLUMNS = ("Image name", "Mask name", "Class", "Bounding box")
TEST_FOLDER = "stream-1-test"

_HIDDEN = re.compile(r"\.[^./]")
"""Names of files that are left out, as AppleDouble's ._NAME."""

_BOX = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)")


@dataclass(frozen=True)
class SparkRow:
    """One row of a SPARK CSV; `line` counts from 1."""

    image: Path
    mask: Path
    spacecraft: int
    box: Box
    line: int


class SparkDataset(PairDataset):
    """A split of SPARK, in the order of its CSV."""

    classes = SPARK_CLASSES
    categories = SPACECRAFT

    def __init__(self, root: Path, split: str, *, check_files: bool = True) -> None:
        """Read and check the CSV.

        Args:
            check_files: refuse rows without their files; False leaves that to `load`.

        Raises:
            DataError: no such root or split, a malformed row, or a row without its files (file and row are named).
        """
        self.root, self.split = root, split
        rows = read_rows(root, split, check_files=check_files)
        super().__init__([(row.image, row.mask) for row in rows])
        self._spacecraft = np.array([row.spacecraft for row in rows], np.int16)
        self._boxes = BoxTable(row.box for row in rows)

    def decode_mask(self, file: ImageFile) -> Mask:
        """Nearest of the three colours."""
        return decode_color_mask(file, self.classes.colors, decoding=self.decoding)

    def sample_id(self, index: int) -> str:
        image, _ = self.pairs[index]
        return f"{SPACECRAFT[self.category(index)].replace(' ', '_')}__{image.stem.removesuffix('_img')}"

    def category(self, index: int) -> int:
        return int(self._spacecraft[index])

    def box(self, index: int) -> Box | None:
        return self._boxes[index]


def read_rows(root: Path, split: str, *, check_files: bool = True) -> list[SparkRow]:
    """Parse `<root>/<split>.csv`."""
    if not root.is_dir():
        raise DataError(
            f"data.root {root}: there is no such folder. Set data.root (or, with --from-env, DATA_ROOT) to the folder "
            "with images/, mask/ and train.csv, or render a demo set: segformer-spark data make-demo "
            f"--root {root}"
        )
    table = root / f"{split}.csv"
    if not table.is_file():
        found = sorted(path.stem for path in root.glob("*.csv") if not path.name.startswith("."))
        raise DataError(f"{table}: there is no such split; {root} has {', '.join(found) or 'no CSV files'}")
    try:
        rows = _parse_table(root, split, table)
    except csv.Error as error:
        raise DataError(f"{table}: this is not a CSV file that can be read: {error}") from error
    if not rows:
        raise DataError(f"{table}: the split has no rows")
    if check_files:
        _check_files(rows, table)
    return rows


def _parse_table(root: Path, split: str, table: Path) -> list[SparkRow]:
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
    missing = [column for column in CSV_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{table}:1: the columns {', '.join(missing)} are missing; expected {', '.join(CSV_COLUMNS)}")
    return [
        _parse_row(root, split, record, table, reader.line_num)
        for record in reader
        if not _HIDDEN.match(record["Image name"] or "")
    ]


def read_boxes(table: Path) -> dict[str, Box]:
    """{image name: box} of a CSV with the columns "Image name" and "Bounding box", for unlabelled images.

    Raises:
        DataError: the file cannot be read, a row is malformed, or two are of one image.
    """
    name_column, box_column = CSV_COLUMNS[0], CSV_COLUMNS[3]
    boxes: dict[str, Box] = {}
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
    try:
        if not {name_column, box_column} <= set(reader.fieldnames or ()):
            raise DataError(f"{table}:1: the columns {name_column!r} and {box_column!r} are needed")
        for record in reader:
            where, name = f"{table}:{reader.line_num}", record[name_column]
            if name in boxes:
                raise DataError(f"{where}: there is a box of {name} in an earlier line already", "Keep one of them.")
            boxes[name] = _box_of(record, where)
    except csv.Error as error:
        raise DataError(f"{table}: this is not a CSV file that can be read: {error}") from error
    return boxes


def _box_of(record: dict[str, str], where: str) -> Box:
    try:
        return parse_box(record[CSV_COLUMNS[3]] or "")
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def parse_box(text: str) -> Box:
    """'(x_min, y_min, x_max, y_max)' -> integers. Raises ValueError when malformed or inverted."""
    match = _BOX.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"the bounding box {text!r} is not '(x_min, y_min, x_max, y_max)'")
    x_min, y_min, x_max, y_max = (int(part) for part in match.groups())
    if x_max < x_min or y_max < y_min:
        raise ValueError(f"the bounding box {text!r} ends before it begins")
    return x_min, y_min, x_max, y_max


def _parse_row(root: Path, split: str, record: dict[str, str], table: Path, line: int) -> SparkRow:
    where = f"{table}:{line}"
    image, mask, spacecraft = record["Image name"], record["Mask name"], record["Class"]
    if not image or not mask or not spacecraft:
        raise DataError(f"{where}: image, mask or class is empty")
    if any(Path(name).name != name or name == ".." or "\0" in name for name in (image, mask)):
        raise DataError(f"{where}: {image!r} and {mask!r} must be file names without folders")
    if spacecraft not in SPACECRAFT:
        raise DataError(f"{where}: the class {spacecraft!r} is not one of {', '.join(SPACECRAFT)}")
    return SparkRow(
        image=on_disk(root / "images" / spacecraft / split / image),
        mask=on_disk(root / "mask" / spacecraft / split / mask),
        spacecraft=SPACECRAFT.index(spacecraft),
        box=_box_of(record, where),
        line=line,
    )


def _check_files(rows: Sequence[SparkRow], table: Path) -> None:
    """One listing per folder: a stat per file takes minutes on a network file system."""
    folders = {path.parent for row in rows for path in (row.image, row.mask)}
    present = {folder: {p.name for p in folder.iterdir()} if folder.is_dir() else set() for folder in folders}
    for row in rows:
        for path in (row.image, row.mask):
            if path.name not in present[path.parent]:
                raise DataError(f"{table}:{row.line}: the row names {path}, which does not exist")
