"""Contents of data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from segformer_spark.errors import DataError

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


class RememberingReader:
    """Reads files and keeps their contents, for who needs the bytes too."""

    def __init__(self) -> None:
        self.contents: dict[Path, bytes] = {}

    def __call__(self, path: Path) -> bytes:
        self.contents[path] = read_file(path)
        return self.contents[path]
