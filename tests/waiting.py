"""Waiting for events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_LIMIT = 300.0  # seconds: a slow machine does not fail a test, and what never comes true does not hang it


def wait_for(condition: Callable[[], Any], what: str, interval: float = 0.05) -> None:
    """Poll until true.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_LIMIT:.0f} s for {what}")
        time.sleep(interval)
