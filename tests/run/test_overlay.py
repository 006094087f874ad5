from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest

from segformer_spark.errors import UserError
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.overlay import overlay_runs


def run_of(folder: Path, name: str, scores: list[float], steps_per_epoch: int) -> RunDirectory:
    """A run with a validation after every epoch."""
    run = RunDirectory(folder / name)
    run.path.mkdir()
    rows = []
    for epoch, score in enumerate(scores, 1):
        step = epoch * steps_per_epoch
        rows += [
            {"kind": "train", "step": step, "epoch": epoch, "loss": 1 / epoch, "lr": 1e-3},
            {"kind": "validation", "step": step, "epoch": epoch, "miou": score, "val_loss": 2 / epoch},
        ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.params_json.write_text(json.dumps({"runtime": {"steps_per_epoch": steps_per_epoch}}))
    return run


def test_runs_of_other_batches_meet_at_epochs(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "one", [0.1, 0.4, 0.3], 10), run_of(tmp_path, "two", [0.2, 0.1], 25)]
    rows = overlay_runs(runs, "miou", tmp_path / "out" / "curves.png")
    assert [(row["run"], row["highest"], row["epoch_of_highest"], row["last"]) for row in rows] == [
        ("one", 0.4, 2.0, 0.3),
        ("two", 0.2, 1.0, 0.1),
    ]
    picture = cv2.imread(str(tmp_path / "out" / "curves.png"))
    assert picture is not None
    assert picture.std() > 5
    with (tmp_path / "out" / "curves.csv").open(newline="") as stream:
        assert [row["points"] for row in csv.DictReader(stream)] == ["3", "2"]
    (lowest, _) = overlay_runs(runs, "loss", tmp_path / "loss.png")
    assert (lowest["lowest"], lowest["epoch_of_lowest"]) == (pytest.approx(1 / 3, abs=1e-6), 3.0)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    runs = [run_of(tmp_path / folder, "run", [score], 10) for folder, score in (("a", 0.1), ("b", 0.2))]
    rows = overlay_runs(runs, "miou", tmp_path / "curves.png")
    assert [(row["run"], row["last"]) for row in rows] == [
        (str(run.path), v) for run, v in zip(runs, (0.1, 0.2), strict=True)
    ]


def test_a_metric_that_no_run_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has 'score'; there are loss, lr, miou, val_loss"):
        overlay_runs([run_of(tmp_path, "one", [0.1], 10)], "score", tmp_path / "x.png")
