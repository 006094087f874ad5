"""Ends a rank that has not heard from the others for too long.

A node that loses its network closes no connection: the other ranks wait in a collective, see no error, and hold their
GPUs until the job's time is over. So every rank moves a counter on in the rendezvous store; rank 0 watches all of them,
the others watch rank 0. Unlike a limit on the length of a collective, this does not have to be as long as the longest
validation.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from segformer_spark.distributed.activity import Activity
from segformer_spark.distributed.rendezvous import Meeting
from segformer_spark.exit_codes import ExitCode

_HEARTBEATS_PER_LIMIT = 6


class PeerWatch:
    """Sends this rank's heartbeats and watches for those of others, in two threads.

    Two, because a question to a store whose network is gone may wait for long; the clock must not.

    Args:
        store: a connection of its own; one that is shared would wait for the main thread's questions.
        peers: {rank: host} to watch.
        limit: seconds of silence after which a peer counts as lost.
        end: called with the message.
        activity: sent with the heartbeats, so that others can say what this rank did last.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        peers: dict[int, str],
        limit: float,
        end: Callable[[str], None] | None = None,
        activity: Activity | None = None,
    ) -> None:
        self.store, self.rank, self.peers, self.limit = store, rank, peers, limit
        self.end, self.activity = end or _end_process, activity or Activity()
        self._last_words = dict.fromkeys(peers, "")
        self._interval = limit / _HEARTBEATS_PER_LIMIT
        self._heard = dict.fromkeys(peers, time.monotonic())
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"peer-watch-{name}", daemon=True)
            for name, target in (("heartbeat", self._send_heartbeats), ("clock", self._watch))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End without waiting for a question under way."""
        self._done.set()

    def _send_heartbeats(self) -> None:
        keys, last, count = [_key(rank) for rank in self.peers], [b""] * len(self.peers), 0
        while not self._done.is_set():
            count += 1
            try:
                self.store.set(_key(self.rank), f"{count} {self.activity.what}")
                values = self.store.multi_get(keys)
            except (RuntimeError, dist.DistError):
                values = last  # no answer is no heartbeat
            for peer, value, before in zip(self.peers, values, last, strict=True):
                if value != before:
                    self._heard[peer] = time.monotonic()
                    self._last_words[peer] = value.decode(errors="replace").partition(" ")[2]
            last = values
            self._done.wait(self._interval)

    def _watch(self) -> None:
        asleep = time.monotonic()
        while not self._done.wait(self._interval / 2):
            woken = time.monotonic()
            if woken - asleep > 3 * self._interval:
                # This process itself stood still (suspended by SLURM): the others did too.
                self._heard = dict.fromkeys(self.peers, woken)
            asleep = woken
            silent = {peer: woken - heard for peer, heard in self._heard.items() if woken - heard > self.limit}
            if silent and not self._done.is_set():
                self.end(self._describe(silent))
                return

    def _describe(self, silent: dict[int, float]) -> str:
        who = ", ".join(f"rank {peer} on {self.peers[peer]}{self._did_last(peer)}" for peer in sorted(silent))
        return (
            f"[rank {self.rank} on {socket.gethostname()}] no heartbeat from {who} for "
            f"{max(silent.values()):.0f} s: a node or the network between them is lost. This rank ends; "
            "the last checkpoint stands, continue with --resume auto"
        )

    def _did_last(self, peer: int) -> str:
        return f" ({self._last_words[peer]})" if self._last_words[peer] else ""


@contextmanager
def watch_peers(meeting: Meeting, rank: int, limit: float | None, activity: Activity) -> Iterator[None]:
    """Watch for the duration of the block; `limit` None or a single rank: nothing to watch."""
    hosts = meeting.hosts
    if limit is None or len(hosts) == 1:
        yield
        return
    peers = {other: hosts[other] for other in (range(1, len(hosts)) if rank == 0 else (0,))}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        *meeting.address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=max(1.0, limit / 2))
    )
    watch = PeerWatch(PrefixStore(f"alive/{meeting.name}", store), rank, peers, limit, activity=activity)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def _key(rank: int) -> str:
    return str(rank)


def _end_process(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    time.sleep(1)  # until slurmstepd has passed it on: the others are ended as soon as this rank is gone
    # Not sys.exit: the main thread waits in a collective and would never come to it.
    os._exit(ExitCode.PEER_LOST)
