"""SHA256SUMS: digests of a folder's files, as coreutils' sha256sum writes and checks them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from segformer_spark.files.atomic import write_text
from segformer_spark.files.digest import sha256_of

CHECKSUMS = "SHA256SUMS"
LEASE = ".lease"
"""Where a folder of results has the files of its lease (`run.lease`), which are no results."""

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def write_checksums(folder: Path, outside: Iterable[str] = ()) -> str:
    """Write SHA256SUMS over every file below `folder` but itself and `outside`; returns the digest of SHA256SUMS."""
    files = _files(folder, set(outside))
    lines = [f"{sha256_of(path)}  {name}\n" for name, path in sorted(files.items())]
    write_text(folder / CHECKSUMS, "".join(lines))
    return root_digest(folder)


def root_digest(folder: Path) -> str:
    """sha256 of SHA256SUMS: one number that stands for the whole folder."""
    return hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()


def check_checksums(folder: Path, outside: Iterable[str] = (), *, unlisted: bool = True) -> list[str]:
    """What is wrong with the files of a folder: changed, missing, or not listed; empty when all agree.

    Args:
        unlisted: files that are not listed are faults; False leaves them alone, as they lie in a folder that others
            add to.
    """
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return [f"{CHECKSUMS}: missing"]
    except (OSError, UnicodeDecodeError) as error:
        return [f"{CHECKSUMS}: cannot be read: {error}"]
    faults: list[str] = []
    listed: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in listed:
            faults.append(f"{CHECKSUMS}: line {number} is damaged")
        else:
            listed[match[2]] = match[1]
    if not text.endswith("\n") or list(listed) != sorted(listed):
        faults.append(f"{CHECKSUMS}: is cut off, or its lines are out of order")
    present = set(_files(folder, set(outside)))
    faults += [f"{name}: missing" for name in sorted(listed.keys() - present)]
    faults += [f"{name}: not in {CHECKSUMS}" for name in sorted(present - listed.keys()) if unlisted]
    faults += [
        f"{name}: changed" for name in sorted(present & listed.keys()) if sha256_of(folder / name) != listed[name]
    ]
    return faults


def _files(folder: Path, outside: set[str]) -> dict[str, Path]:
    """{name as it is written: file} below a folder; bytes that are not UTF-8 are escaped with a backslash."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    own = {
        name: path
        for name, path in paths.items()
        if name != CHECKSUMS and name not in outside and not name.startswith(f"{LEASE}/")
    }
    return {name.encode("utf-8", "backslashreplace").decode(): path for name, path in own.items()}
