"""Digests of files, for manifests and records."""

from __future__ import annotations

import hashlib
from pathlib import Path

from segformer_spark.files.regular_file import open_regular


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
