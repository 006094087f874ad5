from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.cluster.requeue import attempts_without_progress, decide, decide_resumable, obstacle
from segformer_spark.run.directory import RunDirectory


def attempt(restart: int, from_step: int, job: str = "7", **more: Any) -> dict[str, Any]:
    return {"job": job, "restart": restart, "from_step": from_step, **more}


@pytest.mark.parametrize(
    ("attempts", "step", "restart", "expected"),
    [
        ([], 0, 0, 1),  # it died before it held the run
        ([], 0, 2, 3),
        ([attempt(0, 0)], 4, 0, 0),  # this attempt saved something
        ([attempt(0, 0), attempt(1, 4)], 4, 1, 1),
        ([attempt(0, 0), attempt(1, 4), attempt(2, 4), attempt(3, 4)], 4, 3, 3),
        ([attempt(0, 0), attempt(1, 4), attempt(2, 4)], 6, 2, 0),
        ([attempt(0, 0), attempt(2, 4)], 4, 2, 2),  # attempt 1 died too early to be known
        ([attempt(0, 0, job="6")], 4, 0, 1),  # another job's progress is not this one's
        ([attempt(0, 4)], 4, 2, 3),
    ],
)
def test_attempts_without_progress(attempts: list[dict[str, Any]], step: int, restart: int, expected: int) -> None:
    assert attempts_without_progress(attempts, step, "7", restart) == expected


def run_with(folder: Path, attempts: list[dict[str, Any]], step: int = 0) -> RunDirectory:
    (folder / "attempts").mkdir(parents=True)
    for number, one in enumerate(attempts, start=1):
        (folder / "attempts" / f"{number:04d}.json").write_text(json.dumps(one))
    if step:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    return RunDirectory(folder)


@pytest.mark.parametrize(
    ("status", "requeue", "text"),
    [
        (2, False, "says what to mend"),
        (85, True, "stopped with its state saved"),
        (87, True, "a node or its network was lost"),
        (137, True, "ended by SIGKILL"),
        (1, True, "failed with status 1"),
        (0, True, "a node or its network was lost"),  # srun's status when a node is gone
    ],
)
def test_status(tmp_path: Path, status: int, requeue: bool, text: str) -> None:
    decision = decide(run_with(tmp_path / "r", [attempt(0, 0)], step=4), status, "7", 0)
    assert (decision.requeue, decision.complete) == (requeue, False)
    assert text in decision.reason
    if requeue:
        assert decision.reason.endswith("the run goes on from step 4")


def test_rank_0s_word_counts_more_than_the_status(tmp_path: Path) -> None:
    done = run_with(tmp_path / "a", [attempt(0, 0, outcome="completed")], step=9)
    assert decide(done, 0, "7", 0).complete
    assert not decide(done, 0, "7", 1).complete, "an earlier attempt's word"
    stopped = run_with(tmp_path / "b", [attempt(0, 0, outcome="stopped on request")], step=5)
    assert decide(stopped, 143, "7", 0).reason.startswith("stopped with its state saved")


def test_given_up(tmp_path: Path) -> None:
    stuck = run_with(tmp_path / "r", [attempt(n, 4) for n in range(3)], step=4)
    decision = decide(stuck, 139, "7", 2)
    assert not decision.requeue
    assert "3 attempts in a row began at step 4" in decision.reason
    assert "SIGSEGV" in decision.reason
    assert decide(stuck, 139, "7", 1).requeue


def test_resumable_work() -> None:
    assert decide_resumable(138, 0).requeue
    assert decide_resumable(87, 9).requeue
    assert not decide_resumable(87, 10).requeue
    assert not decide_resumable(2, 0).requeue
    assert not decide_resumable(1, 0).requeue


@pytest.mark.parametrize(
    ("shown", "also", "now", "expected"),
    [
        ("JobState=RUNNING Restarts=1", False, 50, ""),
        ("JobState=COMPLETING Restarts=1", False, 50, "SLURM is ending this job"),
        ("JobState=COMPLETING Restarts=1", True, 50, ""),
        ("JobState=COMPLETING Restarts=1", False, 150, ""),  # out of time
        ("JobState=RUNNING Restarts=2", True, 50, "a later attempt"),
    ],
)
def test_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, also: bool, now: float, expected: str
) -> None:
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "JobId=7 {shown} Requeue=1"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = obstacle("7", 1, 100.0, also_cancelled=also, now=now)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)
