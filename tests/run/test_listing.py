from __future__ import annotations

import json
import os
import shutil
import time
from datetime import datetime
from pathlib import Path

import pytest

from segformer_spark.errors import UserError
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.listing import details, find_runs, summarize, table


def test_a_finished_run(trained_run: Path) -> None:
    summary = summarize(RunDirectory(trained_run))
    record = json.loads((trained_run / "training_params.json").read_text())
    assert (summary.name, summary.state, summary.step, summary.total_steps) == ("short", "completed", 9, 9)
    assert summary.metric == "spark_score"
    assert summary.score == pytest.approx(record["best"]["score"], abs=1e-6)
    (attempt,) = record["attempts"]
    began, ended = (datetime.fromisoformat(attempt[key]) for key in ("started", "ended"))
    assert summary.seconds == (ended - began).total_seconds()
    line = table([summary])[1]
    assert "completed" in line
    assert "9/9" in line
    shown = "\n".join(details(RunDirectory(trained_run)))
    assert "attempt 1" in shown
    assert "step 9: spark_score" in shown
    assert str(trained_run / "best") in shown


@pytest.fixture
def under_way(trained_run: Path, tmp_path: Path) -> RunDirectory:
    """A run as it looks from outside while it trains."""
    path = Path(shutil.copytree(trained_run, tmp_path / "runs" / "now"))
    record = json.loads((path / "training_params.json").read_text())
    record |= {"status": "running"}
    for key in ("steps", "best", "ended"):
        record.pop(key)
    record["attempts"] = [{"started": record["started"], "from_step": 0, "hosts": []}]
    (path / "training_params.json").write_text(json.dumps(record))
    lines = (path / "metrics.jsonl").read_text().splitlines()[:6]
    (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st')
    return RunDirectory(path)


def test_a_run_that_trains(under_way: RunDirectory) -> None:
    summary = summarize(under_way)
    assert summary.state == "running"
    assert 0 < summary.step < 9
    assert summary.score is not None
    assert "under way or killed" in "\n".join(details(under_way))


def test_a_run_that_went_silent(under_way: RunDirectory) -> None:
    old = time.time() - 3600
    for path in (under_way.metrics, under_way.log, under_way.params_json):
        os.utime(path, (old, old))
    summary = summarize(under_way)
    assert summary.state == "silent"
    assert summary.updated == pytest.approx(3600, abs=30)
    record = json.loads(under_way.params_json.read_text())
    under_way.params_json.write_text(json.dumps(record | {"status": "completed"}))
    os.utime(under_way.params_json, (old, old))
    assert summarize(under_way).state == "completed", "a finished run may rest"


def test_a_run_that_is_only_being_set_up(under_way: RunDirectory) -> None:
    for path in (under_way.params_json, under_way.metrics):
        path.unlink()
    summary = summarize(under_way)
    assert (summary.state, summary.step, summary.score) == ("unknown", 0, None)
    table([summary])
    details(under_way)


def test_a_run_of_another_version_does_not_hide_the_others(under_way: RunDirectory) -> None:
    under_way.config.write_text("model: {old_field: 1}\n")
    summary = summarize(under_way)
    assert summary.metric == "unreadable"
    assert summary.step > 0


def test_only_runs_are_listed(under_way: RunDirectory) -> None:
    folder = under_way.path.parent
    (folder / "notes").mkdir()
    (folder / "file.txt").write_text("x")
    assert [run.path.name for run in find_runs(folder)] == ["now"]
    with pytest.raises(UserError, match="there is no such folder"):
        find_runs(folder / "no")
