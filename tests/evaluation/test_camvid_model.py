"""tests/data/camvid_b0: a SegFormer-B0 that was trained on CamVid, as a run directory. Its figures come out again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segformer_spark.checkpoint.export import load_model
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.run.directory import RunDirectory
from tests.verbs import leave

ROOT = os.environ.get("CAMVID_ROOT")
RUN = RunDirectory(PROJECT_ROOT / "tests" / "data" / "camvid_b0")


def test_the_run_explains_itself() -> None:
    model, card = load_model(RUN.best)
    assert (model.num_classes, card.image_size, card.dataset, card.run) == (11, (240, 320), "camvid", "camvid_b0_best")
    record = json.loads(RUN.params_json.read_text())
    assert record["status"] == "completed"
    assert len(record["attempts"]) >= 2, "it was resumed"
    assert record["config"]["experiment"]["seed"] == 42
    assert record["config"]["data"]["root"] == "data/camvid"
    readme = (RUN.best / "README.md").read_text()
    assert "CC BY-NC 4.0" in readme
    assert f"{100 * card.metrics['miou']:.1f}" in readme
    assert f"{100 * card.metrics['miou_void_as_error']:.1f}" in readme
    assert sum(file.stat().st_size for file in RUN.path.rglob("*") if file.is_file()) < 9e6


@pytest.mark.sweep
@pytest.mark.skipif(ROOT is None, reason="CAMVID_ROOT is not set")
def test_evaluation_gives_the_figures_of_its_card(tmp_path: Path) -> None:
    """To the rounding of weights to fp16."""
    output = tmp_path / "val"
    assert leave("evaluate", str(RUN.path), "--set", f"data.root={ROOT}", "--output", str(output), "--worst", "0") == 0
    found = json.loads((output / "results.json").read_text())
    card = json.loads((RUN.best / "segformer_spark.json").read_text())
    assert found["num_images"] == 101
    assert found["miou"] > 0.52
    for key in ("miou", "miou_void_as_error", "pixel_accuracy"):
        assert found[key] == pytest.approx(card["metrics"][key], abs=1e-3)
    assert not (RUN.path / "evaluation").exists()
