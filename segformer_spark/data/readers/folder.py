"""Any folder of images and masks, with the class table of the configuration (`data.folder`).

    <root>/images/<split>/**      .jpg .jpeg .png .bmp .tif .tiff .webp
    <root>/masks/<split>/**       the same relative names, whatever the suffix

or, with `data.folder.lists`, the pairs of <lists>/<split>.txt; or, with `data.folder.val_fraction`, the pairs that
`data.pairing` finds below the root, divided into train and val.

Colour masks are decoded by the nearest colour of the table, index masks by its ids. Names that begin with a dot are
skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from segformer_spark.config.schema import DataConfig, FolderConfig
from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo, Color, Mask
from segformer_spark.data.decode import ImageFile
from segformer_spark.data.files import composed, visible_files
from segformer_spark.data.masks import color_tolerance, decode_color_mask
from segformer_spark.data.pairing import find_pairs, refuse_without_partner
from segformer_spark.data.palette import distinct_colors
from segformer_spark.data.readers.lists import read_pair_list
from segformer_spark.data.readers.pairs import PairDataset, refuse_missing_files, relative_id
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import ConfigError, DataError


class FolderDataset(PairDataset):
    """A split of a folder, in the order of the relative names or of its list."""

    def __init__(self, root: Path, split: str, table: FolderConfig, *, check_files: bool = True) -> None:
        """List the files.

        Args:
            table: classes, kind of masks, background, ignored label, and what the splits are.
            check_files: refuse images without mask and masks without image; False leaves that to `load`.

        Raises:
            ConfigError: settings are missing, all of which are said.
            DataError: no such split, or files without a partner.
        """
        _refuse_missing(root, split, table)
        self.root, self.split, self.table = root, split, table
        self.classes = class_info(table)
        ignored = {} if table.ignore_id is None else {table.ignore_id: IGNORE_INDEX}
        self.labels = ignored | {label: position for position, label in enumerate(table.ids)}
        colors = dict(zip(table.ids, self.classes.colors, strict=True))
        if table.ignore_id is not None and table.ignore_color is not None:
            colors[table.ignore_id] = table.ignore_color
        # Colours that nobody has chosen cannot contradict a palette.
        self.label_colors = colors if all(row.color is not None for row in table.classes or ()) else None
        super().__init__(_pairs(root, split, table, check_files=check_files))
        self._images = root if table.lists is not None or table.val_fraction is not None else root / "images" / split

    @classmethod
    def from_config(cls, config: DataConfig, split: str, *, check_files: bool) -> FolderDataset:
        return cls(Path(config.root), split, config.folder, check_files=check_files)

    def decode_mask(self, file: ImageFile) -> Mask:
        """Colours or ids, as the table says."""
        if self.table.masks == "index":
            return super().decode_mask(file)
        colors, ignored = self.classes.colors, self.table.ignore_color
        distance = color_tolerance(colors, ignored)
        return decode_color_mask(file, colors, ignored=ignored, foreign_distance=distance, decoding=self.decoding)

    def sample_id(self, index: int) -> str:
        return relative_id(self.pairs[index][0], self._images)


def class_info(table: FolderConfig) -> ClassInfo:
    """Names and colours of a class table; classes without a colour get one that no other has."""
    rows = table.classes or []
    names = tuple(row.name for row in rows)
    background = names.index(table.background) if table.background is not None else None
    given = [row.color for row in rows if row.color is not None]
    fresh = (color for color in distinct_colors(2 * len(rows), with_black=background == 0) if color not in given)
    colors: tuple[Color, ...] = tuple(next(fresh) if row.color is None else row.color for row in rows)
    return ClassInfo(names, colors, background)


def _refuse_missing(root: Path, split: str, table: FolderConfig) -> None:
    """Raise ConfigError with everything that is missing."""
    problems = []
    rows = table.classes or []
    if len(rows) < 2:
        problems.append(
            "data.folder.classes: dataset folder needs a class table of at least two rows, such as "
            "[{name: background, color: [0, 0, 0]}, {name: body, color: [255, 0, 0]}]"
        )
    without = [row.name for row in rows if row.color is None]
    if table.masks == "color" and without:
        problems.append(f"data.folder.classes: colour masks need the color of {', '.join(without)}")
    folders = {"data.root": root}
    if root.is_dir():
        if table.lists is not None:
            folders = {"data.folder.lists": Path(table.lists)}
            folders |= {} if table.mask_root is None else {"data.folder.mask_root": Path(table.mask_root)}
        elif table.val_fraction is None:
            folders = {f"split {split}, {kind}": root / kind / split for kind in ("images", "masks")}
    missing = {setting: folder for setting, folder in folders.items() if not folder.is_dir()}
    problems += [f"{setting}: {folder}: there is no such folder" for setting, folder in missing.items()]
    if any(setting.startswith("split") for setting in missing):
        problems[-1] += ", nor is data.folder.lists or data.folder.val_fraction set"
    if problems:
        raise ConfigError("; ".join(problems), "`segformer-spark data init FOLDER --name NAME` writes all of them.")


def _pairs(root: Path, split: str, table: FolderConfig, *, check_files: bool) -> Sequence[tuple[Path, Path]]:
    if table.lists is not None:
        pairs = read_pair_list(Path(table.lists) / f"{split}.txt", root, Path(table.mask_root or root))
        if check_files:
            refuse_missing_files(pairs)
        return pairs
    if table.val_fraction is not None:
        return _cut(root, split, table.val_fraction, check_files=check_files)
    return _match(root, split, check_files=check_files)


def _cut(root: Path, split: str, val_fraction: float, *, check_files: bool) -> list[tuple[Path, Path]]:
    """The pairs of train or val: an order by digests of the names, which another image leaves as it is.

    Raises:
        DataError: another split, fewer than two pairs, or files without a partner.
    """
    if split not in ("train", "val"):
        raise DataError(f"{root}: data.folder.val_fraction makes the splits train and val, there is no {split}")
    pairing = find_pairs(root)
    if check_files:
        refuse_without_partner(pairing, root)
    if len(pairing.pairs) < 2:
        raise DataError(f"{root}: {len(pairing.pairs)} images with a mask cannot be divided into train and val")
    order = sorted(range(len(pairing.pairs)), key=lambda i: hashlib.sha256(pairing.names[i].encode()).digest())
    number = min(max(1, round(val_fraction * len(order))), len(order) - 1)
    chosen = sorted(order[:number] if split == "val" else order[number:])
    return [pairing.pairs[index] for index in chosen]


def _match(root: Path, split: str, *, check_files: bool) -> list[tuple[Path, Path]]:
    images, masks = _by_stem(root / "images" / split), _by_stem(root / "masks" / split)
    alone = sorted(images.keys() ^ masks.keys())
    if check_files and alone:
        listed = ", ".join(str(images.get(stem, masks.get(stem))) for stem in alone[:3])
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise DataError(f"{root}: split {split}: no partner of the same name for {listed}{more}")
    return [
        (
            images.get(stem, root / "images" / split / f"{stem}.png"),
            masks.get(stem, root / "masks" / split / f"{stem}.png"),
        )
        for stem in sorted(images.keys() | masks.keys())
    ]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in visible_files(folder, IMAGES, "images"):
        stem = composed(str(path.relative_to(folder).with_suffix("")))
        if stem in found:
            raise DataError(f"{found[stem]} and {path} have the same name; one of them must go")
        found[stem] = path
    return found
