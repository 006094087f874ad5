"""What `verify` finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from segformer_spark.files.checksums import CHECKSUMS, check_checksums, root_digest
from segformer_spark.files.regular_file import read_regular


@dataclass
class Verification:
    """What was found.

    Attributes:
        faults: what is wrong, by file.
        recomputed: files and figures that follow from others and were computed anew.
        hashed: files of which only the digest was compared.
        unchecked: files that have no digest and were only read.
        digest: of SHA256SUMS; None without.
    """

    faults: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    hashed: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    digest: str | None = None


def verify_sealed(folder: Path, outside: Iterable[str] = ()) -> Verification:
    """What SHA256SUMS says of a folder (`check_checksums`), and its digest; for who goes on to compute."""
    found = Verification(check_checksums(folder, outside))
    if (folder / CHECKSUMS).is_file():
        found.digest = root_digest(folder)
    return found


def has_text(path: Path, text: str) -> bool:
    """Whether a file holds this text in UTF-8, and nothing else."""
    try:
        return read_regular(path) == text.encode()
    except OSError:
        return False
