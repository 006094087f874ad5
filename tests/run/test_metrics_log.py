from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import cv2
import pytest

from segformer_spark.run.console import duration
from segformer_spark.run.curves import draw_curves
from segformer_spark.run.metrics_log import MetricsLog, write_history


def filled(path: Path) -> MetricsLog:
    log = MetricsLog(path)
    for step in range(1, 7):
        log.append({"kind": "train", "step": step, "epoch": 1, "loss": float(step), "lr": 0.1})
        if step % 3 == 0:
            log.append({"kind": "validation", "step": step, "epoch": 1, "miou": step / 10})
    return log


def test_rows_and_rewind(tmp_path: Path) -> None:
    log = filled(tmp_path / "m.jsonl")
    assert len(log.rows()) == 8
    with log.path.open("a") as stream:
        stream.write('{"kind": "train", "st')  # a kill in mid-line
    log.rewind(3, validated=True)
    assert [row["step"] for row in log.rows()] == [1, 2, 3, 3]
    log.rewind(3, validated=False)
    assert [row["step"] for row in log.rows()] == [1, 2, 3]
    MetricsLog(tmp_path / "none").rewind(3, validated=True)
    assert not (tmp_path / "none").exists()


def test_foreign_lines_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = filled(tmp_path / "m.jsonl")
    known = log.rows()
    foreign = [b"[1]", b"7", b'{"kind": "train", "step": "x", "loss": 1}', b"\xff\xfe", b'{"step": 1}', b"{}"]
    log.path.write_bytes(b"\n".join([*foreign, log.path.read_bytes(), b'{"kind": "tr']))
    with caplog.at_level(logging.WARNING):
        assert log.rows() == known
    assert "6 lines are no rows of this log and are left out, first line 1" in caplog.text


def test_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"kind": "train", "step": 1, "loss": float("nan")})
    assert json.loads(log.path.read_text())["loss"] is None


def test_history_has_one_row_per_validation(tmp_path: Path) -> None:
    write_history(filled(tmp_path / "m.jsonl").rows(), tmp_path / "h.csv")
    with (tmp_path / "h.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["step"], row["train_loss"], row["miou"]) for row in rows] == [("3", "2.0", "0.3"), ("6", "5.0", "0.6")]


def test_the_training_loss_is_the_mean_of_steps_and_not_of_log_lines(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": 10, "loss": 1.0, "num_steps": 10},
        {"kind": "train", "step": 11, "loss": 5.0, "num_steps": 1},
        {"kind": "validation", "step": 11, "epoch": 1, "miou": 0.5},
        {"kind": "train", "step": 20, "loss": 2.0},  # as version 0.1 wrote it: steps 12 to 20
        {"kind": "train", "step": 21, "loss": 12.0},
        {"kind": "validation", "step": 21, "epoch": 2, "miou": 0.5},
    ]
    write_history(rows, tmp_path / "h.csv")
    with (tmp_path / "h.csv").open() as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert losses == [15 / 11, 30 / 10]


def test_one_point_is_seen(tmp_path: Path) -> None:
    row = {"kind": "train", "step": 3, "epoch": 1, "loss": 0.7, "lr": 1e-3}
    shown = []
    for name, rows in (("one", [row]), ("none", [{**row, "loss": float("nan"), "lr": float("nan")}])):
        draw_curves(rows, tmp_path / f"{name}.png", "x")
        shown.append(cv2.imread(str(tmp_path / f"{name}.png")))
    left, right = ((image[:, : image.shape[1] // 3] != 255).sum() for image in shown)
    assert left > right + 10, "a marker in the loss panel"


def test_curves_are_drawn_even_without_rows(tmp_path: Path) -> None:
    for name, rows in (("full", filled(tmp_path / "m.jsonl").rows()), ("empty", [])):
        draw_curves(rows, tmp_path / f"{name}.png", "x")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_durations() -> None:
    assert [duration(s) for s in (0, 42.4, 185, 3725)] == ["0s", "42s", "3m05s", "1h02m"]
