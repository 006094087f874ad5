"""What this machine says: the time, and what its commands print. Imports no torch."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def output_of(*command: str, timeout: float = 20) -> str | None:
    """What a command prints; None when it is not there, fails or takes longer than `timeout` seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
