"""Contents of data files."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from segformer_spark.errors import DataError
from segformer_spark.run.console import logger

ReadFile = Callable[[Path], bytes]


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}") from error


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


class RememberingReader:
    """Reads files and keeps their contents, for who needs the bytes too."""

    def __init__(self) -> None:
        self.contents: dict[Path, bytes] = {}

    def __call__(self, path: Path) -> bytes:
        self.contents[path] = read_file(path)
        return self.contents[path]
