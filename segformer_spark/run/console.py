"""What the user sees: plain lines in a batch log, a bar on a terminal; rank 0 speaks, other ranks only warn."""

from __future__ import annotations

import io
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from segformer_spark.errors import UserError
from segformer_spark.files.atomic import ask_guard, write_error
from segformer_spark.files.regular_file import append_regular

T = TypeVar("T")

logger = logging.getLogger("segformer_spark")


class _BarAwareHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(rank: int = 0, world_size: int = 1) -> None:
    """Send INFO of rank 0, and WARNING of other ranks with host and rank, to the standard output."""
    logger.handlers.clear()
    logger.propagate = False
    who = "" if rank == 0 else f"[rank {rank}/{world_size} on {socket.gethostname()}] "
    handler = _BarAwareHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)


@contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Append what is logged to a file as well, with dates."""
    if path is None:
        yield
        return
    try:
        stream = io.TextIOWrapper(append_regular(path), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise write_error(path, error) from error
    handler = logging.StreamHandler(stream)
    handler.addFilter(lambda record: _may_write(path))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        stream.close()


def _may_write(path: Path) -> bool:
    try:
        ask_guard(path)
    except UserError:
        return False  # the run belongs to a later attempt: this process still speaks, in its own output
    return True


def progress(items: Iterable[T], *, total: int, label: str, initial: int = 0, visible: bool = True) -> Iterable[T]:
    """Iterate with a bar on a terminal, and in silence elsewhere."""
    show = visible and sys.stderr.isatty()
    return tqdm(items, total=total, initial=initial, desc=label, disable=not show, leave=False, dynamic_ncols=True)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal that is moved by calls with the number of items done since the last one."""
    with tqdm(total=total, desc=label, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:

        def advance(done: int) -> None:
            bar.update(done)

        yield advance


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `42s`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
