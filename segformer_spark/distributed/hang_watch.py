"""Ends a rank whose training step takes far longer than those before it, and shows where it hangs.

An endless read of a broken file system raises no error, and heartbeats go on: without a limit such a job holds its GPUs
until the collectives' own timeout, and then nobody knows which rank the others waited for.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segformer_spark.distributed.activity import Activity
from segformer_spark.exit_codes import ExitCode
from segformer_spark.run.console import logger

_FACTOR, _MEASURED = 20.0, 10
_FACTOR_FOR_WAITING, _MORE_FOR_WAITING = 3.0, 30.0
"""Who only waits for others gives the one that hangs, whose steps may have taken longer, the time to say so."""


class HangWatch:
    """Compares the current activity with the steps measured so far, in a thread.

    Args:
        least: seconds that any step may take.
        end: called with the message.
    """

    def __init__(self, activity: Activity, rank: int, least: float, end: Callable[[str], None] | None = None) -> None:
        self.activity, self.rank, self.least = activity, rank, least
        self.end = end or _end_process
        self.limit: float | None = None
        self._longest, self._count = 0.0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def measured(self, seconds: float) -> None:
        """A step took so long. The first step of a process compiles and fills caches; it does not count."""
        self._count += 1
        if self._count == 1:
            return
        self._longest = max(self._longest, seconds)
        if self._count < _MEASURED:
            return
        first, self.limit = self.limit is None, max(self.least, _FACTOR * self._longest)
        if first:
            logger.info("a step that takes longer than %.0f s counts as hanging", self.limit)

    def _watch(self) -> None:
        asleep, interval = time.monotonic(), min(1.0, self.least / 8)
        while not self._done.wait(interval):
            now = time.monotonic()
            if now - asleep > 5 * interval + 1:
                self.activity.since = now  # this process itself stood still (suspended by Slurm)
            asleep = now
            own, limit = self.activity, self.limit
            if limit is None or not own.is_limited:
                continue
            spent, allowed = now - own.since, _FACTOR_FOR_WAITING * limit + _MORE_FOR_WAITING if own.waits else limit
            if spent > allowed and not self._done.is_set():
                self.end(
                    f"[rank {self.rank} on {socket.gethostname()}] {own.what} for {spent:.0f} s, and the limit is "
                    f"{allowed:.0f} s (hardware.hang_timeout, or {_FACTOR:.0f} times the longest step): this rank "
                    "ends; the last checkpoint stands, continue with --resume auto. Where its threads are:"
                )
                return

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._done.set()


@contextmanager
def watch_for_hangs(activity: Activity, rank: int, least: float | None) -> Iterator[HangWatch | None]:
    """Watch for the duration of the block; `least` None: no watch."""
    if least is None:
        yield None
        return
    watch = HangWatch(activity, rank, least)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _end_process(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    sys.stdout.flush()
    time.sleep(1)  # until slurmstepd has passed it on
    os._exit(ExitCode.PEER_LOST)  # the main thread would never come to sys.exit
