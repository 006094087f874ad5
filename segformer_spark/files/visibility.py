"""Files that another node wrote, and that a network file system does not show yet.

NFS keeps what it knows of a folder for up to a minute (nfs(5), acdirmax), Lustre and others shorter.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("segformer_spark")

_PATIENCE_SECONDS, _PAUSE_SECONDS = 70.0, 0.5
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "cifs", "smb", "afs", "panfs", "wekafs", "fuse")


def wait_until_visible(is_there: Callable[[], bool], folder: Path, what: str) -> bool:
    """Whether it is there, at once or, in a folder of a network file system, within the time of its caches.

    Args:
        what: for the log.
    """
    if is_there():
        return True
    if not is_on_network(folder):
        return False
    logger.info("%s: waiting up to %.0f s for %s, which this node may not see yet", folder, _PATIENCE_SECONDS, what)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        with suppress(OSError):
            os.listdir(folder)  # opening it has the client ask the server
        if is_there():
            return True
    return False


def is_on_network(folder: Path) -> bool:
    """Whether a folder lies on a file system of other machines; False where the system does not say (proc(5))."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    where = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        mount = fields[4].encode().decode("unicode_escape", errors="replace")
        if (where == mount or where.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind.startswith(_NETWORK)
