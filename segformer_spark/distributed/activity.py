"""What a rank is doing, for the threads that watch over it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Activity:
    """Set by the thread that works, read by others.

    Attributes:
        what: for messages, as "loading the images of step 12".
        since: by the monotonic clock.
        is_limited: whether it belongs to a training step, whose length is known from those before it.
        waits: whether it is waiting for other ranks.
    """

    what: str = "starting"
    since: float = field(default_factory=time.monotonic)
    is_limited: bool = False
    waits: bool = False

    def begin(self, what: str, *, is_limited: bool = False, waits: bool = False) -> None:
        """From now on."""
        self.is_limited = False  # a watch that looks in between must not measure the one before
        self.what, self.since, self.waits = what, time.monotonic(), waits
        self.is_limited = is_limited
