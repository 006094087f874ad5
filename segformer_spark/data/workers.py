"""The processes that load data: how they start, what signals mean to them, how they are watched, and how they end."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.queues
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, cast

import cv2
import psutil
import torch
from torch.utils.data import DataLoader

from segformer_spark.data.worker_limits import prepare_limits
from segformer_spark.errors import UserError
from segformer_spark.run.console import logger

_GRACE_SECONDS = 30
_QUESTION_SECONDS = 5
_SAY_AFTER, _SILENCE_LIMIT = 60.0, 600.0
_REASON_BYTES = 400


# How many processes are right depends on what they do; torch compares with the cores alone.
warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes", UserWarning)


class LoadingInterrupted(Exception):
    """Somebody asked to stop while this process waited for its next batch."""


def worker_options(num_workers: int) -> dict[str, Any]:
    """DataLoader's arguments for `num_workers` processes.

    Forked, whatever Python's default: they share what the rank has imported and opened, where a fork server would
    import torch again in each.
    """
    if num_workers == 0:
        return {"num_workers": 0}
    prepare_limits()
    context = multiprocessing.get_context("fork")
    reason = context.Array("c", _REASON_BYTES)
    return {
        "num_workers": num_workers,
        "worker_init_fn": functools.partial(init_worker, reason=reason),
        "multiprocessing_context": context,
        "timeout": _QUESTION_SECONDS,
    }


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """A loader's batches; its processes end with the iteration, also when that fails.

    Raises:
        UserError: as `begin`.
    """
    running = begin(loader)
    try:
        yield from running
    finally:
        end_workers(running)


def begin(loader: DataLoader[Any], interrupted: Callable[[], bool] = lambda: False) -> Iterator[Any]:
    """Iterate over a loader; waiting for its processes is said aloud, and ends when nothing moves.

    Persistent processes are waited for when an epoch begins, too.

    Args:
        interrupted: whether somebody asked to stop, looked at every few seconds.

    Raises:
        UserError: a process ended, or none has done anything for ten minutes; also while iterating.
        LoadingInterrupted: asked to stop; also while iterating.
    """
    running: Any = iter(loader)
    if hasattr(running, "_workers") and not isinstance(running._get_data, _Patience):
        # Around `next` and `iter` an answer that comes late would be lost: torch cannot go on with a reset.
        running._get_data = _Patience(loader, running, interrupted)
    return cast("Iterator[Any]", running)


class _Patience:
    """In the place of an iterator's `_get_data`: asks again where torch gives up after `timeout` seconds."""

    def __init__(self, loader: DataLoader[Any], running: Any, interrupted: Callable[[], bool]) -> None:
        self._loader, self._interrupted = loader, interrupted
        self._ask: Callable[[], Any] = running._get_data
        self._workers = [worker.pid for worker in running._workers]

    def __call__(self) -> Any:
        began = time.monotonic()
        progress = _Progress(self._workers)
        said = False
        while True:
            try:
                return self._ask()
            except RuntimeError as error:
                _refuse_dead_workers(self._loader, error)
                if self._interrupted():
                    raise LoadingInterrupted from error
                silent = progress.seconds_of_silence()
                waited = time.monotonic() - began
                if silent > _SILENCE_LIMIT:
                    raise UserError(
                        f"the loader's processes on {socket.gethostname()} have done nothing for {silent:.0f} s: no "
                        "batch came, no file was read",
                        "Does the file system of the data set answer? With data.num_workers=0 one sees where it hangs.",
                    ) from error
                if waited > _SAY_AFTER and not said:
                    said = True
                    logger.warning("waiting for the next batch of images, since %.0f s", waited)


class _Progress:
    """Whether a loader's processes compute or read."""

    def __init__(self, workers: Sequence[int]) -> None:
        self._workers = workers
        self._since, self._before = time.monotonic(), -1.0

    def seconds_of_silence(self) -> float:
        """Since when neither processor time nor bytes read have grown."""
        now, work = time.monotonic(), sum(_work_of(pid) for pid in self._workers)
        if work > self._before + 0.02:  # a process that waits wakes up from time to time
            self._since, self._before = now, work
        return now - self._since


def _work_of(pid: int) -> float:
    """Processor seconds and MiB read of a process."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return float(times.user + times.system + process.io_counters().read_chars / 2**20)
    except (psutil.Error, OSError):
        return 0.0


def _refuse_dead_workers(loader: DataLoader[Any], error: RuntimeError) -> None:
    """Raise what ended a process; return if this was only a question without an answer yet."""
    if "timed out" in str(error):
        return
    if not str(error).startswith("DataLoader worker"):
        raise error
    options = getattr(loader.worker_init_fn, "keywords", {})
    reason = options["reason"].value.decode("utf-8", "replace") if "reason" in options else ""
    raise UserError(
        f"a process that loads images ended on {socket.gethostname()}: {reason or error}",
        "Check memory (dmesg), shared memory (df /dev/shm) and open files (ulimit -n); data.num_workers=0 loads "
        "without such processes.",
    ) from error


def end_workers(running: Iterator[Any] | None) -> None:
    """End the processes behind a loader's iterator now; left to the garbage collector, they outlive a failed run."""
    # torch has no public way; without workers there is nothing to end.
    shutdown = getattr(running, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()


def init_worker(worker: int, reason: Any = None) -> None:
    """One thread per worker: OpenCV would start one per core in each of them.

    Args:
        reason: shared text for what ends this process.

    Ctrl-C and SLURM's signals reach workers too; they serve until the main process, which decides, lets them go.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_after_grace)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if reason is not None:
        # A batch that cannot be sent is dropped by default, and who waits for it waits for ever.
        queue: Any = multiprocessing.queues.Queue
        queue._on_queue_feeder_error = staticmethod(functools.partial(_end_with_reason, reason))


def _end_with_reason(reason: Any, error: BaseException, batch: object) -> None:
    reason.value = f"a batch could not be sent: {type(error).__name__}: {error}".encode()[: _REASON_BYTES - 1]
    os._exit(1)


def _leave_after_grace(number: int, frame: FrameType | None) -> None:
    """SIGTERM is also how the main process ends its workers when it fails: it is put off, not ignored."""
    signal.alarm(_GRACE_SECONDS)
