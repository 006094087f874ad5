"""A cache copied to a node's own disk: once per node, verified, continued after a requeue.

    <local scratch>/segformer_spark-<job>/<cache>/     the same files as on shared storage
    <local scratch>/segformer_spark-<job>/.complete    written last

One folder per job: two jobs on a node do not meet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from segformer_spark.data.cache import META
from segformer_spark.errors import DataError, UserError
from segformer_spark.files.atomic import write_text
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.regular_file import open_regular
from segformer_spark.run.console import logger

_PREFIX, _COMPLETE = "segformer_spark-", ".complete"
_BLOCK = 2**22
_RESERVE = 2**28
"""Bytes that stay free on the node."""


def wants_staging(environment: Mapping[str, str]) -> bool:
    """Whether STAGE_DATA asks for it.

    Raises:
        UserError: another value than 0 or 1.
    """
    value = environment.get("STAGE_DATA") or "0"
    if value not in ("0", "1"):
        raise UserError(f"STAGE_DATA={value}: set 1 to copy the cache to the nodes, 0 to read it from shared storage")
    return value == "1"


def local_scratch(environment: Mapping[str, str]) -> Path:
    """The node's own disk."""
    named = (environment.get(name) for name in ("LOCAL_SCRATCH", "SLURM_TMPDIR", "TMPDIR"))
    return Path(next((folder for folder in named if folder), "/tmp"))


def staging_folder(scratch: Path, job: str) -> Path:
    """This job's folder on a node."""
    return scratch / f"{_PREFIX}{job}"


def own_folder(environment: Mapping[str, str]) -> Path:
    """The folder of the job that this process belongs to, on this node."""
    return staging_folder(local_scratch(environment), environment.get("SLURM_JOB_ID", "local"))


def staged_copy(cache: Path, folder: Path) -> Path | None:
    """The finished copy of `cache` in a job's folder on this node; None when there is none."""
    copy = folder / cache.name
    return copy if (folder / _COMPLETE).is_file() and (copy / META).is_file() else None


def stage_cache(cache: Path, folder: Path, progress: Callable[[int], None] = lambda done: None) -> Path | None:
    """Copy what is missing; None, with a warning, when it does not fit.

    Args:
        progress: called with the number of bytes that were copied since the last call.

    Raises:
        DataError: the copy does not equal its source.
    """
    finished = staged_copy(cache, folder)
    if finished is not None:
        logger.info("%s is complete already", finished)
        return finished
    copy = folder / cache.name
    # The file that makes it a cache comes last.
    files = sorted(
        (path for path in cache.iterdir() if path.is_file()), key=lambda path: (path.name == META, path.name)
    )
    missing = [file for file in files if not _is_copied(file, copy / file.name)]
    needed = sum(file.stat().st_size for file in missing)
    try:
        copy.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(copy).free
        if needed + _RESERVE > free:
            logger.warning(
                "%s does not fit on %s (%.2f GiB to copy, %.2f GiB free): this node reads it from shared storage",
                cache, folder.parent, needed / 2**30, free / 2**30,
            )  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)
            return None
        for file in missing:
            _copy_verified(file, copy / file.name, progress)
    except OSError as error:
        logger.warning("%s: %s: this node reads the data from shared storage", folder, error.strerror or error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    write_text(folder / _COMPLETE, "")
    return copy


def unstage(folder: Path) -> None:
    """Remove a job's folder from this node."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(own: Path) -> list[Path]:
    """Remove folders of other jobs of this user that SLURM no longer knows: requeued elsewhere, or killed."""
    removed = []
    for folder in sorted(own.parent.glob(f"{_PREFIX}*")):
        job = folder.name.removeprefix(_PREFIX)
        if folder == own or not job.isdigit() or not _is_own(folder):
            continue
        if _is_over(job):
            unstage(folder)
            removed.append(folder)
    return removed


def _is_own(folder: Path) -> bool:
    try:
        return not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError:
        return False  # another job has just removed it


def _is_over(job: str) -> bool:
    """Whether squeue says that there is no such job; when it says nothing at all, the job may live."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--job", job, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    states = done.stdout.split()
    if done.returncode != 0:
        return "Invalid job id" in done.stderr
    return all(state in ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL") for state in states)


def _is_copied(source: Path, target: Path) -> bool:
    """A file has its name only once it was compared with its source."""
    return target.is_file() and target.stat().st_size == source.stat().st_size


def _copy_verified(source: Path, target: Path, progress: Callable[[int], None]) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    digest = hashlib.sha256()
    with open_regular(source) as reader, temporary.open("wb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
            progress(len(block))
        writer.flush()
        os.fsync(writer.fileno())
    if sha256_of(temporary) != digest.hexdigest():
        temporary.unlink()
        raise DataError(f"{target}: the copy differs from {source}; the node's disk is not to be trusted")
    temporary.replace(target)
