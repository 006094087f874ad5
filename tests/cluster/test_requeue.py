from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.cluster import requeue
from segformer_spark.cluster.requeue import JobId, ask_slurm, decide, decide_resumable, obstacle
from segformer_spark.exit_codes import RequeueVerdict
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.outcome import Outcome

COMPLETE, GIVEN_UP, REQUEUED = RequeueVerdict.COMPLETE, RequeueVerdict.GIVEN_UP, RequeueVerdict.REQUEUED
JOB = JobId("7", "7", 0)


def later(restart: int) -> JobId:
    return JobId("7", "7", restart)


def run_with(folder: Path, attempts: list[dict[str, Any]], step: int = 0) -> RunDirectory:
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(attempts, start=1):
        (folder / "attempts" / f"{number:04d}.json").write_text(json.dumps(one))
    if step:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "manifest.json").write_text("{}")
    return RunDirectory(folder)


def attempt(restart: int, from_step: int, **more: Any) -> dict[str, Any]:
    return {"job": "7", "restart": restart, "from_step": from_step, **more}


@pytest.mark.parametrize(
    ("status", "verdict", "text"),
    [
        (2, GIVEN_UP, "says what to fix"),
        (86, GIVEN_UP, "says what to fix"),
        (85, REQUEUED, "stopped with its state saved"),
        (87, REQUEUED, "a node or its network was lost"),
        (137, REQUEUED, "ended by SIGKILL"),
        (1, REQUEUED, "failed with status 1"),
        (0, REQUEUED, "a node or its network was lost"),  # srun's status when a node is gone
    ],
)
def test_status(tmp_path: Path, status: int, verdict: int, text: str) -> None:
    decision = decide(run_with(tmp_path / "r", [attempt(0, 0)], step=4), status, JOB)
    assert decision.verdict == verdict
    assert text in decision.reason
    if decision.requeue:
        assert decision.reason.endswith("the run resumes from step 4")


@pytest.mark.parametrize("status", [0, 1, 139, 143])
@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.EARLY_STOPPED, Outcome.STOPPED])
def test_rank_0s_word_counts_more_than_the_status(tmp_path: Path, outcome: Outcome, status: int) -> None:
    run = run_with(tmp_path / "a", [attempt(0, 0, outcome=outcome.value)], step=9)
    decision = decide(run, status, JOB)
    if outcome is Outcome.STOPPED:
        assert (decision.verdict, decision.reason[:28]) == (REQUEUED, "stopped with its state saved")
    else:
        assert decision.verdict == COMPLETE
    assert decide(run, 1, later(1)).verdict == REQUEUED, "an earlier attempt's word"


def test_given_up_after_three_attempts_that_did_not_get_on(tmp_path: Path) -> None:
    """The first got from 0 to 4; then three in a row die before they save anything."""
    attempts = [attempt(0, 0)]
    run = run_with(tmp_path / "r", attempts, step=4)
    verdicts = [decide(run, 139, JOB).verdict]
    for restart in (1, 2, 3):
        attempts.append(attempt(restart, 4))
        decision = decide(run_with(tmp_path / "r", attempts, step=4), 139, later(restart))
        verdicts.append(decision.verdict)
    assert verdicts == [REQUEUED, REQUEUED, REQUEUED, GIVEN_UP]
    assert "3 attempts in a row began at step 4" in decision.reason
    assert "SIGSEGV" in decision.reason


def test_attempts_that_slurm_sent_back_are_not_counted(tmp_path: Path) -> None:
    """Preempted without grace, four times: no script ran to ask."""
    attempts = [attempt(restart, 0) for restart in range(5)]
    assert decide(run_with(tmp_path / "r", attempts), 137, later(4)).requeue


def test_attempts_that_died_before_they_held_the_run_are_counted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "never")
    assert [decide(run, 1, later(n)).verdict for n in range(3)] == [REQUEUED, REQUEUED, GIVEN_UP]


def test_progress_and_other_jobs_begin_a_new_count(tmp_path: Path) -> None:
    run = run_with(tmp_path / "r", [])
    assert [decide(run, 1, later(n)).verdict for n in range(2)] == [REQUEUED, REQUEUED]
    moved = run_with(tmp_path / "r", [attempt(2, 0)], step=6)
    assert [decide(moved, 1, later(n)).verdict for n in (2, 3, 4)] == [REQUEUED, REQUEUED, REQUEUED]
    assert decide(moved, 1, later(5)).verdict == GIVEN_UP
    assert decide(moved, 1, JobId("8", "8", 0)).verdict == REQUEUED


def test_resumable_work() -> None:
    assert decide_resumable(0, JOB).verdict == COMPLETE
    assert decide_resumable(138, later(20)).requeue, "its time was over"
    assert decide_resumable(87, later(2)).requeue
    for status in (87, 137):
        assert decide_resumable(status, later(3)).verdict == GIVEN_UP
    for status in (1, 2):
        assert decide_resumable(status, JOB).verdict == GIVEN_UP


def test_a_task_of_an_array_is_called_by_its_index() -> None:
    environment = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert JobId.here(environment) == JobId("12_3", "12", 0)
    assert JobId.here({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}) == JobId("12", "12", 2)
    assert JobId.here({}) is None


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("shown", "also", "now", "expected"),
    [
        ("JobState=RUNNING Restarts=1", False, 50, ""),
        ("JobState=COMPLETING Restarts=1", False, 50, "SLURM is ending this job"),
        ("JobState=COMPLETING Restarts=1", True, 50, ""),
        ("JobState=COMPLETING Restarts=1", False, 150, ""),  # out of time
        ("JobState=RUNNING Restarts=2", True, 50, "this is an old attempt"),
    ],
)
def test_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, also: bool, now: float, expected: str
) -> None:
    tool(tmp_path, monkeypatch, f'echo "JobId=7 {shown} Requeue=1"')
    found = obstacle(later(1), 100.0, also_cancelled=also, now=now)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_controller_that_restarts_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: None)
    tried = tmp_path / "tried"
    failure = "slurm_requeue error: Unable to contact slurm controller (connect failure)"
    tool(
        tmp_path,
        monkeypatch,
        f'echo "$@" >> {tried}; [ $(wc -l < {tried}) -ge 3 ] || {{ echo "{failure}" >&2; exit 1; }}',
    )
    assert ask_slurm(JobId("7_1", "9", 0)) == ""
    assert tried.read_text().splitlines() == ["requeue 7_1"] * 3
    tool(tmp_path, monkeypatch, 'echo "Requested operation is presently disabled" >&2; exit 1')
    assert "disabled" in ask_slurm(JOB)
