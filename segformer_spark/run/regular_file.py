"""Files that are files: a pipe or a device in the place of one would be waited for without end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open for reading; links are followed.

    Raises:
        OSError: there is no such file, or it is a pipe, device, socket or folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}
        raise OSError(errno.EINVAL, f"this is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))
    return os.fdopen(descriptor, "rb")
