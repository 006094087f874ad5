"""A worker process of a benchmark: reads its assignment, then runs it once for every line that it is sent."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from segformer_spark.bench.workload import Answer, Assignment
from segformer_spark.run.system import forget_highest_memory, resident_bytes


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the end of `requests` (see bench/interleaved.py)."""
    try:
        assignment = Assignment.model_validate_json(requests.readline())
        from segformer_spark.bench.implementation import build

        workload = build(assignment)
        workload.load()
        before = resident_bytes()
        forget_highest_memory()
        workload.prepare()
        workload.run()
    except Exception as error:  # noqa: BLE001  whatever it is, the parent tells the user
        _send(answers, Answer(error=f"{type(error).__name__}: {error}"))
        return
    _send(answers, Answer())
    for request in requests:
        if request.strip() == "end":
            _send(answers, Answer(memory_mib=_memory_mib(before), flops=workload.flops))
            workload.close()
            return
        started = time.perf_counter()
        workload.run()
        _send(answers, Answer(seconds=time.perf_counter() - started))


def _memory_mib(before: int | None) -> float | None:
    """What the work took at its highest: of a GPU's memory where it has used one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    highest = resident_bytes(highest=True)
    return None if highest is None or before is None else (highest - before) / 2**20


def _send(answers: TextIO, answer: Answer) -> None:
    answers.write(answer.model_dump_json() + "\n")
    answers.flush()


def main() -> None:
    """Keep the pipe to the parent to ourselves: libraries print to stdout."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
