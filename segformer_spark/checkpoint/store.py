"""Checkpoints on disk: committed or absent, verified before use.

    checkpoints/step-00001200/
        model.safetensors       fp32 master weights and batch-norm statistics, names as in the Hugging Face file
        optimizer.safetensors   <key>/<name>, keys of AdamW and Adam exp_avg and exp_avg_sq, of SGD momentum_buffer
        ema.safetensors         averaged weights, where they are kept
        state.json              progress, configuration, versions
        manifest.json           sha256 and size of each file; written last, a folder without it is no checkpoint
    checkpoints/newest          the step of the newest checkpoint that was committed

Nothing in it depends on the ZeRO stage, the number of ranks or transformers' module names.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segformer_spark.checkpoint.names import (
    MANIFEST,
    checkpoint_folders,
    committed,
    is_checkpoint_name,
    step_name,
    step_of,
)
from segformer_spark.errors import CheckpointError, DataError
from segformer_spark.files.atomic import ask_guard, atomic_folder, recover_folder, write_json, write_text
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.regular_file import read_regular
from segformer_spark.files.visibility import wait_until_visible
from segformer_spark.run.console import logger

_FORMAT = 2
_MODEL, _OPTIMIZER, _AVERAGE = "model.safetensors", "optimizer.safetensors", "ema.safetensors"
_STATE = "state.json"
_NEEDED = {_MODEL, _OPTIMIZER, _STATE}
_KNOWN = {*_NEEDED, _AVERAGE}
NEWEST = "newest"
"""Beside the checkpoints: the step of the newest one."""

_DELETED = "deleted"


@dataclass(frozen=True)
class StoredState:
    """What a checkpoint holds, as plain tensors and JSON.

    Attributes:
        model: weights and buffers by name.
        moments: {key of the optimizer's state: {name: tensor}}.
        state: JSON: progress, optimizer step, loss scale, configuration.
        average: averaged weights and buffers by name; None without averaging.
    """

    model: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    average: dict[str, Tensor] | None = None


class CheckpointStore:
    """The checkpoints of one run. Writing and choosing are for rank 0; reading is for all."""

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None) -> None:
        """
        Args:
            keep: how many of the newest stay, two at least: the newest may prove damaged.
            keep_every: checkpoints of every so many steps stay for good.
        """
        self.folder, self.keep, self.keep_every = folder, max(2, keep), keep_every

    def save(self, step: int, stored: StoredState, best_step: int | None = None) -> Path:
        """Commit a checkpoint and remove the oldest ones.

        Args:
            best_step: that of the best model, whose checkpoint stays.

        Raises:
            UserError: it could not be written; older checkpoints are untouched.
        """
        path = self.folder / step_name(step)
        with atomic_folder(path) as temporary:
            save_file(_contiguous(stored.model), temporary / _MODEL, metadata={"format": "pt"})
            flat = {f"{moment}/{name}": t for moment, tensors in stored.moments.items() for name, t in tensors.items()}
            save_file(_contiguous(flat), temporary / _OPTIMIZER, metadata={"format": "pt"})
            if stored.average is not None:
                save_file(_contiguous(stored.average), temporary / _AVERAGE, metadata={"format": "pt"})
            write_json(temporary / _STATE, stored.state)
            files = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"format": _FORMAT, "step": step, "files": files})
        write_text(self.folder / NEWEST, f"{step}\n")
        for old in self.superfluous(best_step, newest=path):
            _remove(old)
        return path

    def superfluous(self, best_step: int | None, newest: Path | None = None) -> list[Path]:
        """The checkpoints that nothing keeps.

        Args:
            best_step: that of the best model.
            newest: counts as the newest, whatever its step: after a fall back past a damaged one, steps count up anew.
        """
        others = [path for path in self.committed() if path != newest]
        old = others[: max(0, len(others) - (self.keep - (newest is not None)))]
        every = self.keep_every
        return [path for path in old if step_of(path) != best_step and (every is None or step_of(path) % every != 0)]

    def prune(self, best_step: int | None) -> list[Path]:
        """Remove what nothing keeps; returns it."""
        removed = self.superfluous(best_step)
        for path in removed:
            _remove(path)
        return removed

    def committed(self) -> list[Path]:
        """Committed checkpoints, oldest first; whether they are intact is for `verify`."""
        return committed(self.folder)

    @property
    def has_begun(self) -> bool:
        """Whether a checkpoint was ever committed, also one that is damaged or gone."""
        return bool(checkpoint_folders(self.folder)) or newest_committed(self.folder) is not None

    def newest_intact(self) -> Path | None:
        """The newest checkpoint that verifies and is finite; another one is named in the log and passed over.

        Raises:
            CheckpointError: there were checkpoints, and none of them can be used.
        """
        wait_until_visible(lambda: lost_newest(self.folder) is None, self.folder, "the newest checkpoint")
        present, lost = checkpoint_folders(self.folder), lost_newest(self.folder)
        if lost is not None and present:
            logger.warning("%s: the checkpoint of step %d, the newest that was saved, is gone", self.folder, lost)
        for path in reversed(present):
            try:
                verify(path)
                refuse_not_finite(read(path), str(path))
            except CheckpointError as error:
                logger.warning("%s; this checkpoint is passed over", error)
                continue
            return path
        if present or lost is not None:
            all_damaged, all_gone = (
                f"all {len(present)} checkpoints are damaged",
                f"its checkpoints, to step {lost}, are gone",
            )
            raise CheckpointError(
                f"{self.folder}: {all_damaged if present else all_gone}",
                "Bring them back from a copy, give --resume CHECKPOINT, or start anew with --overwrite, which removes "
                "the run.",
            )
        return None

    def clean(self) -> None:
        """Undo or remove what a killed save left behind."""
        if not self.folder.is_dir():
            return
        for old in self.folder.glob(".step-*.old"):
            recover_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
            shutil.rmtree(old, ignore_errors=True)
        for leftover in self.folder.glob(f".{NEWEST}.*.tmp"):
            leftover.unlink(missing_ok=True)
        for suffix in ("tmp", _DELETED):
            for leftover in self.folder.glob(f".step-*.{suffix}"):
                shutil.rmtree(leftover, ignore_errors=True)

    def discard_after(self, step: int) -> None:
        """Remove checkpoints of later steps: a run that resumes from `step` will write them again."""
        for path in self.committed():
            if step_of(path) > step:
                logger.warning("%s lies after the step that is resumed from and is removed", path)
                _remove(path)
        if (newest_committed(self.folder) or 0) > step:
            write_text(self.folder / NEWEST, f"{step}\n")


def verify(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: not a checkpoint, or a file is missing, cut or changed.
    """
    try:
        manifest = read_json_object(path / MANIFEST)
        files = dict(manifest["files"])
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: this is not a complete checkpoint, its manifest cannot be read: {error}"
        ) from error
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {manifest.get('format')}, this version reads {_FORMAT}")
    if is_checkpoint_name(path) and manifest.get("step") != step_of(path):
        raise CheckpointError(f"{path}: its manifest is of step {manifest.get('step')}")
    missing, foreign = _NEEDED - files.keys(), files.keys() - _KNOWN
    if missing or foreign:
        wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"names {', '.join(sorted(foreign))}"
        raise CheckpointError(f"{path}: its manifest {wrong}: it is not complete")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: the file is missing from the checkpoint")
        if _digest(file) != expected:
            raise CheckpointError(f"{file}: the file is damaged, its size or sha256 is not that of the manifest")


def refuse_not_finite(stored: StoredState, what: str) -> None:
    """Raise CheckpointError naming the first tensor that has a value which is not finite."""
    groups = {"weights": stored.model, "averaged weights": stored.average or {}}
    groups |= {f"optimizer {key}": tensors for key, tensors in stored.moments.items()}
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{what}: {name} ({group}) has values that are not finite")


def newest_committed(folder: Path) -> int | None:
    """The step of the newest checkpoint that was ever committed; None without one, as before version 0.3."""
    try:
        text = read_regular(folder / NEWEST, 2**10).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if re.fullmatch(r"[0-9]{1,12}\n", text) else None


def lost_newest(folder: Path) -> int | None:
    """The step of the newest checkpoint that was committed, where it is gone; None where it is there."""
    present, last = checkpoint_folders(folder), newest_committed(folder)
    is_there = last is None or (bool(present) and step_of(present[-1]) >= last)
    return None if is_there else last


def read(path: Path) -> StoredState:
    """Read a verified checkpoint.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    moments: dict[str, dict[str, Tensor]] = {}
    try:
        for key, tensor in load_file(path / _OPTIMIZER).items():
            moment, _, name = key.partition("/")
            moments.setdefault(moment, {})[name] = tensor
        state = read_json_object(path / _STATE)
        average = load_file(path / _AVERAGE) if (path / _AVERAGE).is_file() else None
        return StoredState(load_file(path / _MODEL), moments, state, average)
    except (OSError, SafetensorError, DataError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}") from error


def _remove(path: Path) -> None:
    """Rename first: a kill while files are deleted must not leave half a checkpoint under its name."""
    ask_guard(path)
    doomed = path.with_name(f".{path.name}.{_DELETED}")  # not that of a replacement, which would bring it back
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _digest(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
