"""MLflow and Weights & Biases: the real libraries, writing to disk; a resumed run continues its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segformer_spark.errors import UserError
from segformer_spark.training.sinks import ValidationReport
from segformer_spark.training.throughput import IntervalReport
from segformer_spark.training.trackers import open_tracker


def interval(step: int) -> IntervalReport:
    return IntervalReport(
        step=step,
        epoch=0,
        total_steps=4,
        loss=1 / step,
        lr=1e-3,
        lrs={"head": 2e-3},
        grad_norm=None,
        images_per_s=3.0,
        images_per_s_per_device=3.0,
        eta_seconds=1.0,
        memory_gib=0.5,
        skipped_steps=0,
        num_steps=1,
    )


def validation(step: int) -> ValidationReport:
    return ValidationReport(step, 0, {"miou": step / 10, "iou_leaf": 0.5}, 1.0, True, "miou")


SETTINGS: dict[str, Any] = {"training.epochs": 3, "data.root": "photos", "training.loss.class_weights": [1.0, 2.0]}


def two_attempts(name: Any, run: Path) -> None:
    for first in (0, 2):
        tracker = open_tracker(name, run, SETTINGS)
        tracker.start(first, validated=False)
        for step in (first + 1, first + 2):
            tracker.interval(interval(step))
        tracker.validation(validation(first + 2))
        if first:
            tracker.hparams({}, "miou", 0.4, 2)
        tracker.close()


def test_mlflow_has_one_run_with_all_steps(tmp_path: Path) -> None:
    run = tmp_path / "leaves"
    run.mkdir()
    two_attempts("mlflow", run)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("leaves")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert [one.step for one in client.get_metric_history(found.info.run_id, "validation/miou")] == [2, 4]
    assert client.get_metric_history(found.info.run_id, "lr/head")[0].value == 2e-3
    assert found.data.params["training.epochs"] == "3"
    assert found.data.tags["best/miou"] == "0.400000"
    assert found.info.status == "FINISHED"


def test_wandb_continues_under_one_id_and_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "planted" * 6)
    run = tmp_path / "leaves"
    run.mkdir()
    two_attempts("wandb", run)
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert len({file.name for file in files}) == 1, "one id, so that `wandb sync` joins the attempts"
    content = b"".join(file.read_bytes() for file in files)
    for wanted in (b"train/loss", b"validation/miou", b"training.epochs"):
        assert wanted in content
    everything = b"".join(file.read_bytes() for file in (run / "wandb").rglob("*") if file.is_file())
    assert b"planted" not in everything
    assert not list((run / "wandb").rglob("wandb-metadata.json")), "user, host and command"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_library_says_what_to_install(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(UserError, match=rf"pip install 'segformer-spark\[{name}\]'"):
        open_tracker(name, tmp_path, SETTINGS).start(0, validated=False)
