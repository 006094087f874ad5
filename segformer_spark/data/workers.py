"""The processes that load data: how they start, what signals mean to them, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

_GRACE_SECONDS = 30


def worker_options(num_workers: int) -> dict[str, Any]:
    """DataLoader's arguments for `num_workers` processes.

    Forked, whatever Python's default: they share what the rank has imported and opened, where a fork server would
    import torch again in each.
    """
    return {
        "num_workers": num_workers,
        "worker_init_fn": init_worker,
        "multiprocessing_context": "fork" if num_workers else None,
    }


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """A loader's batches; its processes end with the iteration, also when that fails."""
    running = iter(loader)
    try:
        yield from running
    finally:
        end_workers(running)


def end_workers(running: Iterator[Any] | None) -> None:
    """End the processes behind a loader's iterator now; left to the garbage collector, they outlive a failed run."""
    # torch has no public way; without workers there is nothing to end.
    shutdown = getattr(running, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()


def init_worker(worker: int) -> None:
    """One thread per worker: OpenCV would start one per core in each of them.

    Ctrl-C and SLURM's signals reach workers too; they serve until the main process, which decides, lets them go.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_after_grace)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _leave_after_grace(number: int, frame: FrameType | None) -> None:
    """SIGTERM is also how the main process ends its workers when it fails: it is put off, not ignored."""
    signal.alarm(_GRACE_SECONDS)
