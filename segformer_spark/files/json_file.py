"""JSON files that are read back."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from segformer_spark.errors import DataError
from segformer_spark.files.regular_file import MAX_BYTES, named, read_regular

logger = logging.getLogger("segformer_spark")


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: it cannot be read, is no regular file, is too large, or is not JSON in UTF-8.
    """
    with named(path):
        content = read_regular(path, max_bytes)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON: {error}") from error


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: as `read_json`, or it holds something else.
    """
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise DataError(f"{path}: this is not a JSON object")
    return value


def read_json_lines(path: Path, max_bytes: int = MAX_BYTES) -> list[dict[str, Any]]:
    """The JSON objects of a file with one in each line; none where there is no file.

    Lines that are something else are left out, which is logged: a kill may have cut the last one off.

    Raises:
        DataError: the file cannot be read, is no regular file, or is too large.
    """
    with named(path):
        try:
            lines = read_regular(path, max_bytes).decode("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
    found = [value for line in lines if isinstance(value := _value(line), dict)]
    if len(found) < len(lines):
        logger.warning(
            "%s: %d of %d lines are no JSON objects and are left out", path, len(lines) - len(found), len(lines)
        )
    return found


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def equal_values(stored: Any, computed: Any) -> bool:
    """Whether two JSON values are equal; numbers to the rounding of sums on another processor."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        return stored.keys() == computed.keys() and all(equal_values(stored[key], computed[key]) for key in stored)
    if isinstance(stored, list) and isinstance(computed, list):
        return len(stored) == len(computed) and all(map(equal_values, stored, computed))
    if isinstance(stored, float) and isinstance(computed, float):
        return math.isclose(stored, computed, rel_tol=1e-9, abs_tol=1e-12)
    return type(stored) is type(computed) and bool(stored == computed)
