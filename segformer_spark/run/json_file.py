"""JSON files that are read back."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

from segformer_spark.errors import DataError

MAX_BYTES = 2**30
"""No file that this package writes is larger: manifests of millions of images have some 100 MB."""


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file in UTF-8.

    Raises:
        DataError: the file cannot be read, is too large, is not JSON, or holds something else.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise DataError(f"{path}: this is not a file")
        if facts.st_size > max_bytes:
            raise DataError(f"{path}: {facts.st_size} bytes are too many; the limit is {max_bytes}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: is not a JSON object")
    return value


def equal_values(stored: Any, computed: Any) -> bool:
    """Whether two JSON values are equal; numbers to the rounding of sums on another processor."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        return stored.keys() == computed.keys() and all(equal_values(stored[key], computed[key]) for key in stored)
    if isinstance(stored, list) and isinstance(computed, list):
        return len(stored) == len(computed) and all(map(equal_values, stored, computed))
    if isinstance(stored, float) and isinstance(computed, float):
        return math.isclose(stored, computed, rel_tol=1e-9, abs_tol=1e-12)
    return type(stored) is type(computed) and bool(stored == computed)
