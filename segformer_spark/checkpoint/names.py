"""Names of checkpoint folders. Apart from store.py, so that reading them imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-([0-9]{8,12})")


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
    return [path for path in checkpoint_folders(folder) if (path / MANIFEST).is_file()]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Everything that has a checkpoint's name, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if is_checkpoint_name(path)), key=step_of)


def is_checkpoint_name(path: Path) -> bool:
    """Whether the path is named as a checkpoint of a run."""
    return _NAME.fullmatch(path.name) is not None


def newest_step(folder: Path) -> int:
    """Step of the newest committed checkpoint; 0 without one."""
    return max((step_of(path) for path in committed(folder)), default=0)
