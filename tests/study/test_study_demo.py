"""`study-demo` from rendering to the report, smaller than `make study-demo` still, without starting processes anew."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from segformer_spark.errors import UserError
from segformer_spark.run import verb_process
from segformer_spark.study import demo, execute
from tests.verbs import leave, start_forked


@pytest.mark.sweep
def test_the_whole_study_ends_in_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []

    def run_here(title: str, arguments: Sequence[str], processes: int = 1) -> None:
        titles.append(title)
        assert leave(*arguments) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run_verb", run_here)
    monkeypatch.setattr(execute, "_start", start_forked)
    small = ["--num-train", "8", "--num-val", "6", "--num-test", "4", "--pairs", "6", "--set", "training.epochs=1"]
    small += ["--set", "training.scheduler.warmup_epochs=0", "--seeds", "1"]
    small += ["--set", "hardware.threads=1"]
    assert leave("study-demo", "--output", "studies/demo", *small) == 0
    assert len(titles) == 7
    folder = tmp_path / "studies" / "demo"
    page = (folder / "report.html").read_text()
    parts = ("params", "models", "ablation", "anomaly", "agreement")
    pictures = [path for part in parts for path in (folder / part).rglob("*.png")]
    assert page.count("data:image/png;base64,") == len(pictures) == 20
    assert str(tmp_path) not in page
    with (folder / "anomaly" / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["method"] for row in rows}) == 9
    assert len(rows) == 18
    runs = json.loads((folder / "models" / "results.json").read_text())["runs"]
    assert len(runs) == 3
    assert len(json.loads((folder / "ablation" / "results.json").read_text())["runs"]) == 3
    with (folder / "agreement" / "correlation_results.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3


def test_its_steps_are_processes_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.run_verb is verb_process.run_verb
    demo.run_verb("sizes", ["params", "--help"])
    assert "usage: segformer-spark params" in capfd.readouterr().out
    with pytest.raises(UserError, match="sizes failed with status 2; see the messages above"):
        demo.run_verb("sizes", ["params", "--no-such-option"])
