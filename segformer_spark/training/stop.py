"""Requests to stop: a signal, or the end of the job's time. A handler sets a flag; the loop acts at a step boundary."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_IMPATIENCE = 3


@dataclass
class StopRequest:
    """Whether this process was asked to stop, and by what.

    Attributes:
        reason: the signal's name, or that the time is over; None as long as the run may continue.
        deadline: when the job is ended, in seconds since the epoch; None where nobody says.
    """

    reason: str | None = None
    deadline: float | None = None
    _interrupts: int = field(default=0, repr=False)
    _parent: int = field(default_factory=os.getppid, repr=False)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A launcher forwards Ctrl-C once more, so only the third one leaves at once."""
        self.reason = self.reason or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= _IMPATIENCE:
            raise KeyboardInterrupt

    @property
    def whole_reason(self) -> str:
        """The reason for people, with what has become of the launcher since."""
        gone = "" if os.getppid() == self._parent else ": the process that started this one is gone"
        return f"{self.reason or 'another rank'}{gone}"

    def look_at_the_clock(self, reserve: float) -> None:
        """Ask to stop when less than `reserve` seconds are left: the signal before the limit may not come."""
        if self.reason is None and self.deadline is not None and time.time() > self.deadline - reserve:
            self.reason = "the job's time is over soon"


@contextmanager
def catch_signals(deadline: float | None = None) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 into a request for the duration of the block."""
    request = StopRequest(deadline=deadline)
    before = {number: signal.signal(number, request.handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
