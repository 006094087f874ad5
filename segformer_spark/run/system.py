"""What this machine says: the time, this process's memory, what commands print. Imports no torch."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path


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


def resident_bytes(*, highest: bool = False) -> int | None:
    """Resident memory of this process, now or at its highest; None where there is no /proc."""
    field = "VmHWM:" if highest else "VmRSS:"
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def forget_highest_memory() -> None:
    """Let `resident_bytes(highest=True)` start anew from now on, where the kernel can (proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
