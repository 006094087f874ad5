"""Contents of data files."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segformer_spark.errors import DataError
from segformer_spark.files.regular_file import named, read_regular
from segformer_spark.run.console import logger

_UNUSED_NAMED = 5

MAX_BYTES = 2**32
"""Of a file that is read as a whole; an image of `data.max_pixels` has less than a gigabyte."""

ReadFile = Callable[[Path], bytes]


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read, is no regular file, or is larger than MAX_BYTES.
    """
    with named(path):
        return read_regular(path, MAX_BYTES)


def read_text(path: Path) -> str:
    """The text of a list or table: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    What is neither is taken as Latin-1, which is logged.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    content = read_file(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content:
        raise DataError(f"{path}: this is not a text file: it has bytes of 0, and no byte-order mark of UTF-16")
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise DataError(f"{path}: this is not text in UTF-16: {error}; save it as UTF-8") from error
        logger.warning("%s: the text is not UTF-8 (%s); it is read as Latin-1", path, error)
        return content.decode("latin-1")


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS and archives made there decompose letters with accents."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def on_disk(path: Path) -> Path:
    """The file of that name in whatever Unicode form it lies there; `path` itself where there is none."""
    if path.name.isascii() or path.exists() or not path.parent.is_dir():
        return path
    wanted = composed(path.name)
    return next((other for other in path.parent.iterdir() if composed(other.name) == wanted), path)


def visible_files(folder: Path, suffixes: Sequence[str], what: str, *, below: bool = True) -> list[Path]:
    """Files in `folder`, and `below` it, with these suffixes, sorted. Links are followed.

    Names that begin with a dot (AppleDouble) are left out; other files that are left out are counted and named in the
    log.

    Raises:
        DataError: there is no such folder, it cannot be read, it has a link to itself, or nothing of the kind.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of {what}; check data.root and the split")
    seen = sorted(_visible(folder, frozenset()))
    found = [path for path in seen if path.suffix.lower() in suffixes and (below or path.parent == folder)]
    if not found:
        raise DataError(f"{folder}: there are no {what} ({', '.join(suffixes)})")
    place = "" if below else " in the folder itself"
    log_unused(folder, seen, found, f"they are no {what} ({', '.join(suffixes)}){place}")
    return found


def log_unused(folder: Path, seen: Sequence[Path], used: Sequence[Path], reason: str) -> None:
    """Count and name the files of `seen` that are not `used`."""
    unused = sorted(set(seen) - set(used))
    if unused:
        named = ", ".join(str(path.relative_to(folder)) for path in unused[:_UNUSED_NAMED])
        more = ", ..." if len(unused) > _UNUSED_NAMED else ""
        logger.warning("%s: %d of %d files are not used, %s: %s%s", folder, len(unused), len(seen), reason, named, more)


def _visible(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Files whose names do not begin with a dot; `above` has device and inode of the folders above."""
    try:
        status = folder.stat()
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from error
    own = status.st_dev, status.st_ino
    if own in above:
        raise DataError(f"{folder}: this link leads to a folder above it", "Remove the link.")
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir():
            yield from _visible(path, above | {own})
        else:
            yield path


class RememberingReader:
    """Reads files and keeps their contents, for who needs the bytes too."""

    def __init__(self) -> None:
        self.contents: dict[Path, bytes] = {}

    def __call__(self, path: Path) -> bytes:
        self.contents[path] = read_file(path)
        return self.contents[path]
