"""Names of checkpoint folders. Apart from store.py, so that reading them imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


def step_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint folder's name says."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def committed(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first; whether they are intact is for `store.verify`."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def newest_step(folder: Path) -> int:
    """Step of the newest committed checkpoint; 0 without one."""
    return max((step_of(path) for path in committed(folder)), default=0)
