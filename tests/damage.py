"""What can happen to a file."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero_tail(path: Path, rng: random.Random) -> None:
    """Blocks at the end that never reached the disk."""
    content = path.read_bytes()
    length = min(64, len(content) - 1)
    path.write_bytes(content[:-length] + (b"\1" if content.endswith(b"\0") else b"\0") * length)


def cut(path: Path, rng: random.Random) -> None:
    """The last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def foreign(path: Path, rng: random.Random) -> None:
    """Text of another format, with bytes that are no UTF-8."""
    path.write_bytes(b"[1, {\xff]\n" * 3)


def list_in_its_place(path: Path, rng: random.Random) -> None:
    """JSON and YAML of another shape."""
    path.write_bytes(b'[{"step": "x"}, null]\n')


def pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link_loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)
