"""A finished run goes on when its length is raised, with the schedule of the new length; an unfinished one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from segformer_spark.run.metrics_log import MetricsLog
from tests.ranks import run_on_ranks
from tests.training.short_run import short_run


def train(root: Path, path: Path, *overrides: str, resume: str | None = None, stop_at: int = 10**9) -> list[float]:
    losses: list[float] = run_on_ranks(1, short_run, str(root), str(path), overrides, resume, stop_at)[0]
    return losses


def test_a_finished_run_is_extended(spark_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert len(train(spark_root, path)) == 9
    before = load_file(path / "final" / "model.safetensors")
    assert len(train(spark_root, path, "training.epochs=5", resume="auto")) == 6
    rows = [row for row in MetricsLog(path / "metrics.jsonl").rows() if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 16))
    record = json.loads((path / "training_params.json").read_text())
    extended = record["attempts"][1]["extended"]
    assert (extended["from_steps"], extended["to_steps"]) == (9, 15)
    assert extended["lr_before"] == pytest.approx(rows[8]["lr"])
    assert extended["lr_after"] == pytest.approx(rows[9]["lr"])
    assert rows[9]["lr"] > 3 * rows[8]["lr"], "the cosine of fifteen steps is not at its end after nine"
    whole = tmp_path / "whole"
    train(spark_root, whole, "training.epochs=5")
    own = [row["lr"] for row in MetricsLog(whole / "metrics.jsonl").rows() if row["kind"] == "train"]
    assert own[9:] == [row["lr"] for row in rows[9:]], "the schedule of the new length"
    log = (path / "log.txt").read_text()
    assert "the finished run is extended from 9 to 15 steps. The schedule is that of the new length: " in log
    after = load_file(path / "final" / "model.safetensors")
    assert any(not tensor.equal(after[name]) for name, tensor in before.items())
    assert record["steps"] == 15


def test_an_extension_that_is_cut_off_goes_on(spark_root: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("once", "cut")]
    for path in paths:
        train(spark_root, path)
    train(spark_root, paths[0], "training.epochs=5", resume="auto")
    train(spark_root, paths[1], "training.epochs=5", resume="auto", stop_at=2)
    train(spark_root, paths[1], "training.epochs=5", resume="auto")
    assert (paths[0] / "steps.bin").read_bytes() == (paths[1] / "steps.bin").read_bytes()


@pytest.mark.parametrize(("epochs", "stop_at"), [(5, 4), (2, 10**9)], ids=["unfinished", "shorter"])
def test_no_other_run_gets_another_length(epochs: int, stop_at: int, spark_root: Path, tmp_path: Path) -> None:
    train(spark_root, tmp_path / "run", stop_at=stop_at)
    with pytest.raises(AssertionError, match=f"training.epochs was 3, now {epochs}"):
        train(spark_root, tmp_path / "run", f"training.epochs={epochs}", resume="auto")
