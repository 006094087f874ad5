"""`study-demo` from rendering to the report, smaller than `make study-demo` still."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.demo
def test_the_whole_study_ends_in_one_report(tmp_path: Path) -> None:
    small = ["--num-train", "8", "--num-val", "6", "--num-test", "4", "--pairs", "6", "--set", "training.epochs=1"]
    small += ["--set", "training.scheduler.warmup_epochs=0", "--seeds", "1"]
    command = [sys.executable, "-m", "segformer_spark", "study-demo", "--output", "studies/demo", *small]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path / "home")}, check=True)
    folder = tmp_path / "studies" / "demo"
    page = (folder / "report.html").read_text()
    parts = ("params", "models", "ablation", "anomaly", "agreement")
    pictures = [path for part in parts for path in (folder / part).rglob("*.png")]
    assert page.count("data:image/png;base64,") == len(pictures) == 19
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
