"""Whether a job that ended should run again: after a stop yes, after a mistake no, after a crash if it gets on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segformer_spark.checkpoint.names import newest_step
from segformer_spark.errors import EXIT_PEER_LOST, EXIT_STOPPED, EXIT_USER_ERROR
from segformer_spark.run.claim import read_attempts
from segformer_spark.run.directory import RunDirectory

MAX_ATTEMPTS = 3
"""Attempts in a row that begin at the same step."""

MAX_RESTARTS = 10
"""Of work whose progress is not counted."""


@dataclass(frozen=True)
class Decision:
    """Whether to requeue, and why, for the log's last lines; `complete` when there is nothing left to do."""

    requeue: bool
    reason: str
    complete: bool = False


def decide(run: RunDirectory, status: int, job: str, restart: int) -> Decision:
    """What to do after training left with `status`.

    Args:
        job, restart: SLURM's job id and how often this job was restarted.
    """
    step, attempts = newest_step(run.checkpoints), read_attempts(run.path)
    outcome = _outcome(attempts, job, restart)
    if status == 0:
        if outcome is not None:
            return Decision(False, "training is complete", complete=True)
        # srun says 0 when it loses a node.
        status = EXIT_PEER_LOST
    if status == EXIT_USER_ERROR:
        return Decision(False, "the message above says what to mend; another attempt would meet it again")
    if outcome is not None:
        # Rank 0 left in order. A rank that left before the others had srun end them, whose status hides this one.
        status = EXIT_STOPPED
    stuck = attempts_without_progress(attempts, step, job, restart)
    if stuck >= MAX_ATTEMPTS:
        return Decision(
            False,
            f"{stuck} attempts in a row began at step {step} and saved nothing beyond it: the run would end there "
            f"for ever. This time: {_cause(status)}",
        )
    return Decision(True, f"{_cause(status)}; the run goes on from step {step}")


def decide_resumable(status: int, restart: int) -> Decision:
    """The same for work that can run again from where its files stand: evaluation, inference."""
    if status != EXIT_PEER_LOST and status <= 128:
        return Decision(False, "done" if status == 0 else "the message above says what to mend")
    if restart >= MAX_RESTARTS:
        return Decision(False, f"cut off {restart + 1} times, this time because {_cause(status)}")
    return Decision(True, f"{_cause(status)}; it runs again, with what is missing")


def obstacle(job: str, restart: int, job_end: float | None, *, also_cancelled: bool, now: float | None = None) -> str:
    """Why SLURM must not be asked to requeue this job although it would help; empty when it may.

    Args:
        job_end: when the job's time is over, in seconds since the epoch.
        also_cancelled: requeue a job that the user cancelled, too; by default that is final.
    """
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False).stdout
    facts = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    if int(facts.get("Restarts", restart)) != restart:
        # This script is a stray: its node was given up, and the job runs elsewhere already.
        return "a later attempt of this job has begun elsewhere"
    # Cancelled, preempted, out of time or a node lost: all show as COMPLETING as long as the script runs.
    ending = facts.get("JobState") in ("COMPLETING", "CANCELLED", "PREEMPTED")
    in_time = job_end is None or (time.time() if now is None else now) < job_end
    if ending and in_time and not also_cancelled:
        return "SLURM is ending this job: after a lost node or a preemption it requeues it by itself"
    return ""


def _outcome(attempts: Sequence[dict[str, Any]], job: str, restart: int) -> str | None:
    """How rank 0 said that this attempt ended; None when it could not."""
    if not attempts or (attempts[-1]["job"], attempts[-1]["restart"]) != (job, restart):
        return None
    outcome: str | None = attempts[-1].get("outcome")
    return outcome


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
