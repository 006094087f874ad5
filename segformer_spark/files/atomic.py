"""Files that are complete or absent: written beside their place, fsynced, then renamed (os.replace).

A kill or a full disk leaves the old file, never half of a new one. A folder can be guarded: then its guard is asked
before each rename, and may refuse by raising.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from segformer_spark.errors import UserError
from segformer_spark.files.paths import real_path

_READ_AND_WRITE = 0o666
_guards: dict[Path, Callable[[], None]] = {}


@contextmanager
def guarded(folder: Path, guard: Callable[[], None]) -> Iterator[None]:
    """Ask `guard` before anything in `folder` is written, for the duration of the block."""
    key = real_path(folder)
    before = _guards.get(key)
    _guards[key] = guard
    try:
        yield
    finally:
        if before is None:
            del _guards[key]
        else:
            _guards[key] = before


def ask_guard(path: Path) -> None:
    """Raise what the guard of a folder above `path` raises; for writes that are not renames."""
    if not _guards:
        return
    whole = real_path(path)
    for folder in (whole, *whole.parents):
        if folder in _guards:
            _guards[folder]()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place as `path` when the block ends without an error.

    Raises:
        UserError: the file cannot be written (disk full, no permission); the old `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        ask_guard(path)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # the reason is said above
            temporary.unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; bytes of file names that are not UTF-8 are escaped with a backslash."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a header, atomically."""
    write_text(path, csv_text(columns, rows))


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a header, as `write_csv` writes it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a new folder that takes its place as `path` when the block ends without an error.

    Every file in it is fsynced first, and gets the mode that the umask asks for: safetensors writes through files that
    only the owner may read. An existing `path` is replaced.

    Raises:
        UserError: something cannot be written; the old `path` stays and nothing half done is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        mode = temporary.stat().st_mode & _READ_AND_WRITE
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(mode)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(temporary)
        ask_guard(path)
        _replace_folder(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_error(path: Path, error: Exception) -> UserError:
    """The user's message for a failed write."""
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"{path}: cannot be written: {reason}. Free space or choose another folder; what was there is untouched."
    )


def sync_folder(path: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(temporary: Path, path: Path) -> None:
    """A folder cannot be renamed over a full one: move the old one aside first, remove it last."""
    if not path.exists():
        temporary.rename(path)
        return
    old = _set_aside(path)
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo a replacement that was cut off between its two renames: the old folder comes back."""
    old = _set_aside(path)
    if old.is_dir() and not path.exists():
        old.rename(path)


def complete_folder(path: Path) -> Path | None:
    """Where the complete folder lies, for readers: `path`, or what a replacement that was cut off set aside."""
    return next((folder for folder in (path, _set_aside(path)) if folder.is_dir()), None)


def _set_aside(path: Path) -> Path:
    """Where a replacement keeps the old folder between its two renames."""
    return path.with_name(f".{path.name}.old")


def remove_leftovers(folder: Path, *, also_below: bool = False, older_than: float = 0.0) -> None:
    """Remove what kills left of files and folders that were being written.

    Args:
        also_below: in the folders in it, too.
        older_than: seconds; 0 is for who alone writes there.
    """
    for leftover in [*folder.glob(".*.tmp"), *(folder.glob("*/.*.tmp") if also_below else ())]:
        with suppress(FileNotFoundError):
            if older_than and time.time() - leftover.stat().st_mtime < older_than:
                continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
