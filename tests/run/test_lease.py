from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.errors import RunTakenOver, UserError
from segformer_spark.files.atomic import atomic_folder, write_text
from segformer_spark.run import lease as module
from segformer_spark.run.lease import (
    Lease,
    Owner,
    follow_results,
    lease_results,
    lease_run,
    read_attempts,
    refuse_if_leased,
)
from segformer_spark.run.metrics_log import MetricsLog
from tests.ranks import forked

HERE = Owner.here({})
JOB = dataclasses.replace(HERE, job="7", host="node1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.6)


def test_attempts_are_numbered_and_ended(tmp_path: Path) -> None:
    for step in (0, 5):
        with lease_run(tmp_path, step, HERE) as lease:
            lease.check()
            assert "ended" not in read_attempts(tmp_path)[-1]
    attempts = read_attempts(tmp_path)
    assert [(a["from_step"], "ended" in a) for a in attempts] == [(0, True), (5, True)]
    assert (tmp_path / "attempts" / "latest").read_text() == "2"


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with lease_run(tmp_path, 0, HERE), pytest.raises(UserError, match="is being trained at this moment by process"):
        refuse_if_leased(tmp_path, dataclasses.replace(HERE, pid=1))
    refuse_if_leased(tmp_path, HERE)


def test_another_job_is_refused_by_signs_of_life_alone(tmp_path: Path) -> None:
    other = dataclasses.replace(JOB, job="8", host="node2")
    with lease_run(tmp_path, 0, JOB), pytest.raises(UserError, match="job 7 on node1"):
        refuse_if_leased(tmp_path, other)


def test_a_dead_holder_elsewhere_is_replaced_after_a_watch(tmp_path: Path) -> None:
    with lease_run(tmp_path, 3, JOB):
        pass
    facts = tmp_path / "attempts" / "0001.json"
    record = json.loads(facts.read_text())
    del record["ended"]
    facts.write_text(json.dumps(record))
    started = time.monotonic()
    refuse_if_leased(tmp_path, dataclasses.replace(JOB, job="8", host="node2"))
    assert time.monotonic() - started >= 0.6


def _hold(run: Path, owner: Owner) -> None:
    module._HEARTBEAT_SECONDS = 0.05
    with lease_run(run, 0, owner):
        time.sleep(60)


def test_a_killed_process_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold_here, args=(tmp_path,))
    process.start()
    while not (tmp_path / "attempts" / "latest").is_file():
        time.sleep(0.01)
    with pytest.raises(UserError, match="at this moment"):
        refuse_if_leased(tmp_path, HERE)
    process.kill()
    process.join()
    with lease_run(tmp_path, 0, HERE) as lease:
        assert lease.number == 2


def _hold_here(run: Path) -> None:
    _hold(run, Owner.here({}))


def test_a_requeued_job_takes_over_and_the_old_attempt_cannot_write(tmp_path: Path) -> None:
    """Through whichever door: files, folders, appended lines; and what stood there stays."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with lease_run(tmp_path, 0, JOB) as old:
        write_text(tmp_path / "a.txt", "old")
        log.append({"step": 1, "kind": "train"})
        later = Lease(module._of_run(tmp_path), 2, {})
        refuse_if_leased(tmp_path, dataclasses.replace(JOB, restart=1))
        (tmp_path / "attempts" / "latest").write_text("2")  # as the later attempt does, in its own process
        for write in (
            lambda: write_text(tmp_path / "a.txt", "stray"),
            lambda: log.append({"step": 2, "kind": "train"}),
            lambda: _fill(tmp_path / "checkpoints" / "step"),
        ):
            with pytest.raises(RunTakenOver, match="attempt 2 has taken this over"):
                write()
        _wait(lambda: old.lost)
        later.check()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(log.rows()) == 1
    assert not (tmp_path / "checkpoints" / "step").exists()
    write_text(tmp_path / "a.txt", "guard is gone with the block")


def _fill(path: Path) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "x").write_text("x")


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_writes_elsewhere_are_not_asked(tmp_path: Path) -> None:
    with lease_run(tmp_path / "run", 0, JOB):
        (tmp_path / "run" / "attempts" / "latest").write_text("9")
        write_text(tmp_path / "elsewhere.txt", "x")
    assert (tmp_path / "elsewhere.txt").read_text() == "x"


def test_two_that_begin_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_newest", lambda place: 0)
    with lease_run(tmp_path, 0, JOB):
        pass
    with pytest.raises(UserError, match="at the same moment"), lease_run(tmp_path, 0, HERE):
        pass
    assert sorted(path.name for path in (tmp_path / "attempts").glob("*.json")) == ["0001.json"]


def test_one_that_was_overtaken_while_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its late announcement must not hide the number of the attempt that has the run."""
    original = module._create_exclusively

    def overtaken(place: Any, number: int, facts: Any) -> None:
        original(place, number, facts)
        original(place, number + 1, facts)
        (place.folder / "latest").write_text(str(number + 1))

    monkeypatch.setattr(module, "_create_exclusively", overtaken)
    with pytest.raises(RunTakenOver), lease_run(tmp_path, 0, JOB):
        pass
    assert (tmp_path / "attempts" / "latest").read_text() == "2"


def test_an_attempt_whose_file_is_damaged_is_watched(tmp_path: Path) -> None:
    with lease_run(tmp_path, 0, JOB):
        (tmp_path / "attempts" / "0001.json").write_text("")
        with pytest.raises(UserError, match="at this moment by another process \\(attempt 1\\)"):
            refuse_if_leased(tmp_path, HERE)
        assert read_attempts(tmp_path) == []


def write_on(folder: str) -> None:
    """Another process, which holds a folder of results until it is killed."""
    with lease_results(Path(folder), Owner.here({})):
        write_text(Path(folder) / "begun", "x")
        time.sleep(600)


def test_a_folder_of_results_has_one_writer(tmp_path: Path) -> None:
    """Beside a run that trains; a killed writer leaves the folder to the next."""
    results = tmp_path / "submission"
    with lease_run(tmp_path, 0, JOB):
        process = forked(write_on, str(results))
        _wait((results / "begun").exists)
        with (
            pytest.raises(UserError, match=r"this folder is being written at this moment by process \d+.*--output"),
            lease_results(results, HERE),
        ):
            pass
        process.kill()
        process.join()
        with lease_results(results, HERE) as lease:
            assert lease.number == 2
            with follow_results(results, 1), pytest.raises(RunTakenOver, match="attempt 2 has taken this over"):
                write_text(results / "stray", "x")
    assert not (results / "stray").exists()
    write_text(tmp_path / "log", "the run's own lease is another")
