"""Waiting for other ranks: in short sleeps that a signal ends, with a limit, and said aloud."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from segformer_spark.distributed.environment import Launch
from segformer_spark.errors import PeersNotFound
from segformer_spark.run.console import logger

PAUSE, _LONGEST_PAUSE, _GROWTH = 0.005, 0.25, 1.3
"""Seconds: hundreds of ranks that wait for long must not keep rank 0's store busy."""

_SAY_EVERY = 30.0


class Wait:
    """What a rank waits for on its way to the others, at most until `deadline` (of the monotonic clock)."""

    def __init__(self, launch: Launch, deadline: float) -> None:
        self.launch, self.deadline = launch, deadline
        self._pause = PAUSE
        self._began = self._said = time.monotonic()
        self.who = f"[rank {launch.rank} on {socket.gethostname()}]"

    def pause(self, for_whom: str) -> None:
        """Sleep a little; say for whom this rank waits every half minute.

        Raises:
            PeersNotFound: the limit is reached.
        """
        now = time.monotonic()
        if now > self.deadline:
            raise self.failed(f"{for_whom} did not come within {now - self._began:.0f} s")
        if now - self._said > _SAY_EVERY:
            self._said = now
            logger.warning("%s waiting for %s, since %.0f s", self.who, for_whom, now - self._began)
        time.sleep(self._pause)
        self._pause = min(_LONGEST_PAUSE, _GROWTH * self._pause)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A question to the store; raises PeersNotFound when it is gone."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise self.failed(f"rank 0 or the network to it is gone: {error}") from error

    def failed(self, reason: str) -> PeersNotFound:
        """The error that names this rank and where it looked for the others."""
        launch = self.launch
        host, port = launch.master or ("", 0)
        return PeersNotFound(
            f"{self.who} the {launch.world_size} ranks did not find each other at {host}:{port}: {reason}"
        )
