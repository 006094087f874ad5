"""A contestant's process: reads a task, then does it once for every line it is sent (see bench/pairs.py)."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from segformer_spark.run.system import forget_highest_memory, resident_bytes


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the end of `requests`."""
    task: dict[str, Any] = json.loads(requests.readline())
    try:
        from segformer_spark.bench.tasks import build

        work = build(task)
        work.load()
        before = resident_bytes()
        forget_highest_memory()
        work.prepare()
        work.run()
    except Exception as error:  # noqa: BLE001  whatever it is, the parent tells the user
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _answer(answers, {"ready": True})
    for request in requests:
        if request.strip() == "end":
            _answer(answers, {"memory_mib": _memory_mib(before), "flops": work.flops})
            return
        started = time.perf_counter()
        work.run()
        _answer(answers, {"seconds": time.perf_counter() - started})


def _memory_mib(before: int | None) -> float | None:
    """What the work took at its highest: of a GPU's memory where it has used one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    highest = resident_bytes(highest=True)
    return None if highest is None or before is None else (highest - before) / 2**20


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main() -> None:
    """Keep the pipe to the parent to ourselves: libraries print to stdout."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
