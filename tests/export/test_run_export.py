"""`export` of a run: what it writes, and what `predict` and `evaluate` make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerForSemanticSegmentation, pipeline

from segformer_spark.checkpoint.export import load_model
from tests.once import made_once
from tests.verbs import leave

KINDS = (("onnx", "model.onnx"), ("safetensors", "model"))


@pytest.fixture(scope="module")
def exported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        for kind, name in KINDS:
            assert leave("export", str(trained_run), "--format", kind, "--output", str(folder / name)) == 0
        options = ("--int8", "--num-calibration", "3", "--with-preprocessing", "--output", str(folder / "int8.onnx"))
        assert leave("export", str(trained_run), *options) == 0

    return made_once(tmp_path_factory, "exported_run", make)


@pytest.mark.sweep
def test_a_program_of_torch_export_needs_nothing_of_this_package(trained_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    assert leave("export", str(trained_run), "--format", "torch-export", "--output", str(file)) == 0
    program = torch.export.load(file).module()
    model, _ = load_model(trained_run / "best")
    images = torch.randn(3, 3, 97, 131)
    with torch.inference_mode():
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)


def test_the_hub_folder_loads_with_transformers(exported: Path, spark_root: Path) -> None:
    network = SegformerForSemanticSegmentation.from_pretrained(exported / "model")
    assert network.config.id2label == {0: "background", 1: "body", 2: "panels"}
    image = next((spark_root / "stream-1-test").iterdir())
    found = pipeline("image-segmentation", str(exported / "model"))(str(image))
    assert {one["label"] for one in found} <= {"background", "body", "panels"}
    text = (exported / "model" / "README.md").read_text()
    for wanted in (
        "library_name: transformers",
        "| 1 | body |",
        "spark_score",
        "learning rate",
        "from segformer_spark",
    ):
        assert wanted in text


def test_predictions_of_onnx_are_the_runs(exported: Path, trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    images = str(spark_root / "stream-1-test")
    assert leave("predict", str(trained_run), images, "--output", str(tmp_path / "run")) == 0
    assert leave("predict", "--onnx", str(exported / "model.onnx"), images, "--output", str(tmp_path / "onnx")) == 0
    for path in (tmp_path / "run" / "ids").iterdir():
        first, second = (np.asarray(PIL.Image.open(tmp_path / kind / "ids" / path.name)) for kind in ("run", "onnx"))
        assert (first != second).mean() < 1e-3


def test_int8_is_evaluated_as_the_run(exported: Path, trained_run: Path, tmp_path: Path) -> None:
    config = ("--config", str(trained_run / "config.yaml"), "--worst", "0")
    results = {}
    for name, model in (("run", trained_run), ("int8", exported / "int8.onnx")):
        output = tmp_path / name
        assert leave("evaluate", "--model", str(model), *config, "--output", str(output)) == 0
        results[name] = json.loads((output / "results.json").read_text())["pixel_accuracy"]
    assert results["int8"] == pytest.approx(results["run"], abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "safetensors", "--int8"), "--int8 goes with --format onnx"),
        (("--format", "safetensors", "--with-preprocessing"), "safetensors hold weights alone"),
        (("--calibration", "x"), "--calibration goes with --int8"),
    ],
)
def test_options_that_do_not_go_together(
    trained_run: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("export", str(trained_run), *options) == 2
    assert message in capsys.readouterr().err


def test_an_existing_file_is_left_alone(exported: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("export", str(trained_run), "--output", str(exported / "model.onnx")) == 2
    assert "this exists" in capsys.readouterr().err


def test_int8_without_images_says_how(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("export", str(exported / "model"), "--int8", "--output", str(tmp_path / "a.onnx")) == 2
    assert "--calibration FOLDER" in capsys.readouterr().err
