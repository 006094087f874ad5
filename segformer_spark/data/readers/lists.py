"""Lists of pairs: `<split>.txt` with an image and its mask per line, separated by a tab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segformer_spark.data.files import read_text
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import write_text


def read_pair_list(path: Path, root: Path, mask_root: Path) -> list[tuple[Path, Path]]:
    """The pairs of a list, in its order; lines that begin with # are comments.

    Raises:
        DataError: no such list, nothing in it, or a line that is no pair of names below their folders.
    """
    if not path.is_file():
        others = sorted(other.stem for other in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        raise DataError(f"{path}: there is no such list; {path.parent} has {', '.join(others) or 'none'}")
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise DataError(f"{path}:{number}: expected an image and its mask, separated by a tab, got {line!r}")
        for part in parts:
            if PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts:
                raise DataError(
                    f"{path}:{number}: {part!r} leads out of its folder",
                    "Names are relative to data.root, and to data.folder.mask_root.",
                )
        pairs.append((root / parts[0], mask_root / parts[1]))
    if not pairs:
        raise DataError(f"{path}: there is nothing in this list")
    return pairs


def write_pair_list(path: Path, pairs: Sequence[tuple[Path, Path]], root: Path, mask_root: Path) -> None:
    """Write what `read_pair_list` reads.

    Raises:
        DataError: a name with a tab or a line break, or that begins with #.
    """
    lines = []
    for image, mask in pairs:
        names = str(image.relative_to(root)), str(mask.relative_to(mask_root))
        for name in names:
            if any(character in name for character in "\t\r\n") or name.startswith("#"):
                raise DataError(f"{name!r}: a name with a tab or line break, or that begins with #", "Rename it.")
        lines.append("\t".join(names))
    write_text(path, "".join(f"{line}\n" for line in lines))
