"""Any folder of images and masks, with the class table of the configuration (`data.folder`).

    <root>/images/<split>/**      .jpg .jpeg .png .bmp .tif .tiff .webp
    <root>/masks/<split>/**       the same relative names, whatever the suffix

Colour masks are decoded by the nearest colour of the table, index masks by its ids. Names that begin with a dot are
skipped.
"""

from __future__ import annotations

from pathlib import Path

from segformer_spark.config.schema import DataConfig, FolderConfig
from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo, Mask
from segformer_spark.data.decode import ImageFile
from segformer_spark.data.files import composed, visible_files
from segformer_spark.data.masks import color_tolerance, decode_color_mask
from segformer_spark.data.readers.pairs import PairDataset, relative_id
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import ConfigError, DataError


class FolderDataset(PairDataset):
    """A split of a folder, in the order of the relative names."""

    def __init__(self, root: Path, split: str, table: FolderConfig, *, check_files: bool = True) -> None:
        """List the files.

        Args:
            table: classes, kind of masks, background, ignored label.
            check_files: refuse images without mask and masks without image; False leaves that to `load`.

        Raises:
            ConfigError: no class table.
            DataError: no such split, or files without a partner.
        """
        self.root, self.split, self.table = root, split, table
        self.classes = _class_info(table)
        ignored = {} if table.ignore_id is None else {table.ignore_id: IGNORE_INDEX}
        self.labels = ignored | {label: position for position, label in enumerate(table.ids)}
        colors = dict(zip(table.ids, self.classes.colors, strict=True))
        if table.ignore_id is not None and table.ignore_color is not None:
            colors[table.ignore_id] = table.ignore_color
        self.label_colors = colors
        super().__init__(_match(root, split, check_files=check_files))

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
        return relative_id(self.pairs[index][0], self.root / "images" / self.split)


def _class_info(table: FolderConfig) -> ClassInfo:
    rows = table.classes
    if rows is None or len(rows) < 2:
        raise ConfigError(
            "data.folder.classes: dataset folder needs a class table of at least two rows, such as "
            "[{name: background, color: [0, 0, 0]}, {name: body, color: [255, 0, 0]}]"
        )
    names = tuple(row.name for row in rows)
    background = names.index(table.background) if table.background is not None else None
    return ClassInfo(names, tuple(row.color for row in rows), background)


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
