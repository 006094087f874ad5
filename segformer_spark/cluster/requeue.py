"""Whether a job that ended should run again: after a stop yes, after a mistake no, after a crash if it gets on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.names import newest_step
from segformer_spark.exit_codes import ExitCode, RequeueVerdict
from segformer_spark.files.atomic import write_text
from segformer_spark.files.json_file import read_json_lines
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.lease import read_attempts, restart_count
from segformer_spark.run.outcome import FINISHED, Outcome

MAX_ATTEMPTS = 3
"""Attempts in a row that begin at the same step and save nothing beyond it."""

MAX_CRASHES, MAX_CUTS = 3, 50
"""Restarts of work whose progress is not counted, after a crash and after its time was over."""

_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class JobId:
    """This job, as SLURM's commands have to be told, and which attempt of it runs.

    Attributes:
        name: the job's id; ARRAY_TASK in an array, whose bare ids may mean all of its tasks.
        id: what SLURM_JOB_ID says, as attempts are recorded.
        restart: how often it was restarted.
    """

    name: str
    id: str
    restart: int

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> JobId | None:
        """The job that this process belongs to; None outside of one."""
        job, array = environment.get("SLURM_JOB_ID"), environment.get("SLURM_ARRAY_JOB_ID")
        if job is None:
            return None
        name = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else job
        return cls(name, job, restart_count(environment))


@dataclass(frozen=True)
class Decision:
    """What to do, and why, for the log's last lines."""

    verdict: RequeueVerdict
    reason: str

    @property
    def requeue(self) -> bool:
        return self.verdict == RequeueVerdict.REQUEUED


def decide(run: RunDirectory, status: int, job: JobId, generation: int | None = None) -> Decision:
    """What to do after the training step left with `status`.

    srun's status alone does not say: it is 0 when srun loses a node, and the highest of all ranks when one that left
    first had the others ended. Rank 0's word in the run directory counts more.

    Args:
        generation: of the ranks that ended, where they may be restarted in place; None for the last one.
    """
    step, attempts = newest_step(run.checkpoints), read_attempts(run.path)
    own = attempts[-1] if attempts and (attempts[-1]["job"], attempts[-1]["restart"]) == (job.id, job.restart) else {}
    if own and generation is not None and own.get("generation", 0) != generation:
        own = {}  # these ended before they had the run
    outcome = own.get("outcome")
    if outcome in FINISHED:
        return Decision(RequeueVerdict.COMPLETE, "training is complete")
    if outcome == Outcome.STOPPED:
        status = ExitCode.STOPPED
    elif status == 0:
        status = ExitCode.PEER_LOST
    if status in (ExitCode.USER_ERROR, ExitCode.PORT_TAKEN):
        return Decision(
            RequeueVerdict.GIVEN_UP, "the message above says what to fix; another attempt would meet it again"
        )
    moved_on = bool(own) and own["from_step"] < step
    stuck = 0 if moved_on else count_stuck(run.path, step, job) + 1
    if stuck >= MAX_ATTEMPTS:
        return Decision(
            RequeueVerdict.GIVEN_UP,
            f"{stuck} attempts in a row began at step {step} and saved nothing beyond it: the run would end there "
            f"for ever. This time: {_cause(status)}",
        )
    if stuck:
        remember_stuck(run.path, step, job)
    return Decision(RequeueVerdict.REQUEUED, f"{_cause(status)}; the run resumes from step {step}")


def count_stuck(run: Path, step: int, job: JobId) -> int:
    """How many earlier attempts of this job failed at `step` without having moved on.

    Only attempts that this module sent back are counted: SLURM requeues after a preemption by itself.
    """
    return sum(entry.get("job") == job.id and entry.get("step") == step for entry in _stuck(run))


def remember_stuck(run: Path, step: int, job: JobId) -> None:
    """Count this attempt as one that did not get on."""
    entries = [*_stuck(run), {"job": job.id, "restart": job.restart, "step": step}]
    write_text(_stuck_path(run), "".join(json.dumps(entry) + "\n" for entry in entries))


def _stuck(run: Path) -> Sequence[dict[str, Any]]:
    return read_json_lines(_stuck_path(run))


def _stuck_path(run: Path) -> Path:
    return RunDirectory(run).attempts / "stuck.jsonl"


def decide_resumable(status: int, job: JobId) -> Decision:
    """The same for work that can run again from where its files stand: evaluation, inference."""
    if status == 0:
        return Decision(RequeueVerdict.COMPLETE, "done")
    if status != ExitCode.PEER_LOST and status <= 128:
        return Decision(RequeueVerdict.GIVEN_UP, "the message above says what to fix")
    limit = MAX_CUTS if status == 128 + signal.SIGUSR1 else MAX_CRASHES
    if job.restart >= limit:
        return Decision(RequeueVerdict.GIVEN_UP, f"it was cut off {job.restart + 1} times. This time: {_cause(status)}")
    return Decision(RequeueVerdict.REQUEUED, f"{_cause(status)}; it runs again, with what is missing")


def obstacle(job: JobId, job_end: float | None, *, also_cancelled: bool, now: float | None = None) -> str:
    """Why SLURM must not be asked to requeue this job although it would help; empty when it may.

    Args:
        job_end: when the job's time is over, in seconds since the epoch.
        also_cancelled: requeue a job that the user cancelled, too; by default that is final.
    """
    facts = _show(job)
    if int(facts.get("Restarts", job.restart)) != job.restart:
        return "this is an old attempt, and the job has begun again elsewhere"
    # Cancelled, preempted, out of time or a node lost: all show as COMPLETING as long as the script runs.
    ending = facts.get("JobState") in ("COMPLETING", "CANCELLED", "PREEMPTED")
    in_time = job_end is None or (time.time() if now is None else now) < job_end
    if ending and in_time and not also_cancelled:
        return "SLURM is ending this job, and requeues it by itself unless it was cancelled"
    return ""


def ask_slurm(job: JobId, excluded: Sequence[str] = ()) -> str:
    """Requeue the job; returns what went wrong, empty when nothing did. Patient with a controller that restarts.

    Args:
        excluded: nodes that it is not to get again, where Slurm still takes that in the moment that it leaves.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        done = subprocess.run(["scontrol", "requeue", job.name], capture_output=True, text=True, check=False)
        trouble = (done.stderr or done.stdout).strip() if done.returncode != 0 else ""
        passing = any(word in trouble for word in ("contact", "timed out", "onnection"))
        if not trouble and excluded:
            asked = _show(job).get("ExcNodeList", "(null)")  # as the user submitted it
            nodes = ",".join([*([] if asked in ("", "(null)") else [asked]), *excluded])
            command = ["scontrol", "update", f"JobId={job.name}", f"ExcNodeList={nodes}"]
            updated = subprocess.run(command, capture_output=True, text=True, check=False)
            if updated.returncode != 0:
                print(f"the nodes are not left out: {(updated.stderr or updated.stdout).strip()}", flush=True)
        if not passing or time.monotonic() > deadline:
            return trouble
        time.sleep(3)


def _show(job: JobId) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "-o", "show", "job", job.name], capture_output=True, text=True, check=False)
    return dict(part.split("=", 1) for part in shown.stdout.split() if "=" in part)


def _cause(status: int) -> str:
    if status == ExitCode.STOPPED:
        return "stopped with its state saved"
    if status == ExitCode.PEER_LOST:
        return "a node or its network was lost"
    if status == ExitCode.DIVERGED:
        return "a step was not finite; the images come in another order now"
    if status > 128:
        try:
            return f"a rank was ended by {signal.Signals(status - 128).name}"
        except ValueError:
            return f"a rank ended with status {status}"
    return f"a rank failed with status {status}, see its messages above"
