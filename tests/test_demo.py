"""`make demo` as a new user runs it, with images of half the side and half the steps, and an empty HOME that must stay
empty."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from segformer_spark.config.load import PROJECT_ROOT


@pytest.mark.demo
def test_make_demo_learns_and_writes_nothing_outside_the_project(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = ("PATH", "LANG", "VENV", "PYTHON", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}
    environment["DEMO_ARGS"] = "--num-train 300 --set data.image_size=128 --set training.epochs=3"
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    subprocess.run(["make", "demo"], cwd=PROJECT_ROOT, env=environment, check=True)
    assert list(home.iterdir()) == []

    run = PROJECT_ROOT / "runs" / "demo"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    untrained = next(row for row in rows if row["kind"] == "validation" and row["step"] == 0)
    results = json.loads((run / "evaluation" / "val" / "results.json").read_text())
    assert untrained["spark_score"] < 0.1
    assert results["spark_score"] > 0.25
    assert results["record"]["training"]["runtime"]["world_size"] == 2
    assert (run / "report.html").stat().st_size > 100_000
    with zipfile.ZipFile(run / "submission" / "submission.zip") as archive:
        assert len(archive.namelist()) == 20
        assert archive.testzip() is None


def test_the_demo_replaces_its_own_runs_only(trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    from segformer_spark.demo import _is_own
    from segformer_spark.run.directory import RunDirectory

    assert _is_own(RunDirectory(trained_run), spark_root)
    assert not _is_own(RunDirectory(trained_run), tmp_path)
    assert not _is_own(RunDirectory(tmp_path), tmp_path)
