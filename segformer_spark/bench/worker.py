"""A contestant's process: reads a task, then does it once for every line it is sent (see bench/pairs.py)."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the end of `requests`."""
    task: dict[str, Any] = json.loads(requests.readline())
    try:
        from segformer_spark.bench.tasks import build

        work = build(task)
        before = _resident("VmRSS")
        _forget_peak()
        work.prepare()
        work.run()
    except Exception as error:  # noqa: BLE001  whatever it is, the parent tells the user
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _answer(answers, {"ready": True})
    for request in requests:
        if request.strip() == "end":
            peak = _resident("VmHWM")
            memory = None if peak is None or before is None else (peak - before) / 1024
            _answer(answers, {"memory_mib": memory, "flops": work.flops})
            return
        started = time.perf_counter()
        work.run()
        _answer(answers, {"seconds": time.perf_counter() - started})


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _resident(field: str) -> int | None:
    """Resident memory in KiB, now (VmRSS) or at its highest (VmHWM); None where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def _forget_peak() -> None:
    # Elsewhere the peak of the imports stays, which is less than that of what follows.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    """Keep the pipe to the parent to ourselves: libraries print to stdout."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
