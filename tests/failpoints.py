"""Kills at chosen file operations: Python tells an audit hook of each before it happens."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ranks import forked

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod", "os.symlink"}


def kills(action: Callable[..., Any], folder: Path, *arguments: Any, most: int = 2000, every: int = 1) -> Iterator[int]:
    """Run `action(folder, *arguments)` in a fork that is killed before its first change of a file below `folder`, then
    in one that is killed before its second, and so on, until one ends by itself. Yields the number after each kill.

    Args:
        every: only one operation of so many.

    Raises:
        AssertionError: the action fails by itself, or has more than `most` operations.
    """
    for number in range(1, most, every):
        process = forked(_killed, number, action, str(folder), arguments)
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL, f"operation {number}: it left with {process.exitcode}"
        yield number
    raise AssertionError(f"more than {most} operations")


def _killed(number: int, action: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    left = [number]

    def count(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in _CHANGES:
            return
        if any(isinstance(one, str | os.PathLike) and str(one).startswith(folder) for one in details):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    action(Path(folder), *arguments)
