"""Files that are files: a pipe or a device in the place of one would be waited for without end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

from segformer_spark.errors import DataError

MAX_BYTES = 2**30
"""No file that this package writes to be read as a whole is larger: manifests of millions of images have 100 MB."""


def open_regular(path: Path) -> BufferedReader:
    """Open for reading; links are followed.

    Raises:
        OSError: there is no such file, or it is a pipe, device, socket or folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    _refuse_other(descriptor, path)
    return os.fdopen(descriptor, "rb")


def _refuse_other(descriptor: int, path: Path) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}
        raise OSError(errno.EINVAL, f"this is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))


def append_regular(path: Path) -> BufferedWriter:
    """Open for appending; made where there is none.

    Raises:
        OSError: it cannot be written, or it is a pipe, device, socket or folder.
    """
    # Without readers, opening a pipe would wait for one.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    _refuse_other(descriptor, path)
    return os.fdopen(descriptor, "ab")


def read_regular(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Raises:
        OSError: as `open_regular`, or it has more than `max_bytes`; strerror says so.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes are too many; the limit is {max_bytes}", str(path))
        return stream.read(max_bytes)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Raise DataError with the file's name for what the system says in the block."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}") from error
