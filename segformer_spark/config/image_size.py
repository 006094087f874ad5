"""Sizes of the model's input: a side in pixels, or [height, width], also written 720x1280."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

Size = tuple[int, int]
"""(height, width) in pixels."""

_SMALLEST, _LARGEST = 32, 4096
_EXPECTED = f"a side in pixels from {_SMALLEST} to {_LARGEST}, or [height, width], also written 720x1280"


def _as_setting(value: Any) -> Any:
    """One side for a square, else (height, width)."""
    sides = value
    if isinstance(value, str) and (written := re.fullmatch(r"\s*(\d+)(?:\s*x\s*(\d+))?\s*", value, re.ASCII)):
        sides = [int(side) for side in written.groups() if side is not None]
    sides = list(sides) if isinstance(sides, list | tuple) else [sides]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) not in (1, 2) or not whole or not all(_SMALLEST <= side <= _LARGEST for side in sides):
        raise ValueError(f"must be {_EXPECTED}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


ImageSize = Annotated[int | Size, BeforeValidator(_as_setting)]
"""A setting or message field that holds a size: one side for a square, else (height, width)."""


def parse_size(value: Any) -> Size:
    """(height, width) of a side, [height, width] or text such as 512 and 720x1280.

    Raises:
        ValueError: it is none of these, or a side is out of range.
    """
    return height_width(_as_setting(value))


def height_width(setting: int | Size) -> Size:
    """(height, width) of a setting."""
    return setting if isinstance(setting, tuple) else (setting, setting)


def setting_of(size: Size) -> int | Size:
    """The shortest setting of a size: one side for a square."""
    return size[0] if size[0] == size[1] else size


def size_text(setting: int | Size) -> str:
    """As names, tables and messages write it: 512 for a square, else 720x1280, height first."""
    height, width = height_width(setting)
    return str(height) if height == width else f"{height}x{width}"
