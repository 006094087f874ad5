"""Paths without links."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: Path) -> Path:
    """The absolute path without links.

    Where `Path.resolve` raises for a link that leads to itself (before Python 3.13), the link stays: who opens it gets
    the error, which has a name then.
    """
    return Path(os.path.realpath(path))
