"""Rows of a data set in arrays rather than objects.

Loader processes are forked. A Python object that one of them looks at is copied, with its page, for the count of its
references; of 160,000 rows every loader of every rank would soon have its own copy. Arrays stay shared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from segformer_spark.data.dataset import Box


class StringTable(Sequence[str]):
    """Strings, such as file names of any bytes (PEP 383), one after the other in one piece of memory."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(text) for text in strings]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = self._ends[number - 1] if number else 0
        return os.fsdecode(self._bytes[start : self._ends[number]].tobytes())


class PathPairs(Sequence[tuple[Path, Path]]):
    """Pairs of files."""

    def __init__(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        listed = list(pairs)
        self._first = StringTable(str(first) for first, _ in listed)
        self._second = StringTable(str(second) for _, second in listed)

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, index: int) -> tuple[Path, Path]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Path, Path]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Path, Path] | list[tuple[Path, Path]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return Path(self._first[index]), Path(self._second[index])


class BoxTable:
    """Boxes by index, or None."""

    def __init__(self, boxes: Iterable[Box | Sequence[int] | None]) -> None:
        absent = (0, 0, -1, -1)  # no box: boxes are inclusive
        self._boxes = np.array([absent if box is None else tuple(box) for box in boxes], np.int64).reshape(-1, 4)

    def __getitem__(self, index: int) -> Box | None:
        left, top, right, bottom = (int(value) for value in self._boxes[index])
        return None if (left, top, right, bottom) == (0, 0, -1, -1) else (left, top, right, bottom)
