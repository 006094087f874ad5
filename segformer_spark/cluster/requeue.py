"""Whether a job that ended should run again: after a stop yes, after a mistake no, after a crash if it gets on."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segformer_spark.checkpoint.names import newest_step
from segformer_spark.errors import EXIT_PEER_LOST, EXIT_STOPPED, EXIT_USER_ERROR
from segformer_spark.run.claim import read_attempts
from segformer_spark.run.directory import RunDirectory

MAX_ATTEMPTS = 3
"""Attempts in a row that begin at the same step."""


@dataclass(frozen=True)
class Decision:
    """Whether to requeue, and why, for the log's last lines."""

    requeue: bool
    reason: str


def decide(run: RunDirectory, status: int, job: str, restart: int) -> Decision:
    """What to do after training left with `status`.

    Args:
        job, restart: SLURM's job id and how often this job was restarted.
    """
    if status == 0:
        return Decision(False, "training is complete")
    if status == EXIT_USER_ERROR:
        return Decision(False, "the message above says what to mend; another attempt would meet it again")
    step = newest_step(run.checkpoints)
    stuck = attempts_without_progress(read_attempts(run.path), step, job, restart)
    if stuck >= MAX_ATTEMPTS:
        return Decision(
            False,
            f"{stuck} attempts in a row began at step {step} and saved nothing beyond it: the run would end there "
            f"for ever. {_cause(status).capitalize()} this time",
        )
    return Decision(True, f"{_cause(status)}; the run goes on from step {step}")


def attempts_without_progress(attempts: Sequence[dict[str, Any]], step: int, job: str, restart: int) -> int:
    """How many of this job's latest attempts, this one included, saved no checkpoint later than their start.

    Args:
        attempts: what the run directory knows of them; an attempt that died before it came so far is not among them.
        step: of the newest checkpoint.
    """
    moved = [a["restart"] for a in attempts if a["job"] == job and a["from_step"] < step]
    # The attempt after the last one that moved on is the first that began at `step`.
    return restart - max(moved, default=-1)


def _cause(status: int) -> str:
    if status == EXIT_STOPPED:
        return "stopped with its state saved"
    if status == EXIT_PEER_LOST:
        return "a node or its network was lost"
    if status > 128:
        try:
            return f"a rank was ended by {signal.Signals(status - 128).name}"
        except ValueError:
            return f"a rank ended with status {status}"
    return f"a rank failed with status {status}, see its messages above"
