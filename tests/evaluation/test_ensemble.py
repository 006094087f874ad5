"""Several models as one, folds of a cross-validation, and the mean of a run's last checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.evaluation.session import InferenceSettings, Session, make_ensemble
from segformer_spark.files.checksums import write_checksums
from tests.ranks import run_on_ranks
from tests.sessions import group_of_one
from tests.training.short_run import short_run
from tests.verbs import leave

NUM_FOLDS = 3


def variant(run: Path, target: Path, seed: int, fold: int | None = None) -> Path:
    """A copy of a run with other weights, maybe trained on a fold."""
    shutil.copytree(run, target)
    file = target / "best" / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(file)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = tensor + 0.002 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, file, metadata={"format": "pt"})
    write_checksums(file.parent)
    config = yaml.safe_load((target / "config.yaml").read_text())
    config["data"]["cross_validation"] = {"fold": fold, "num_folds": NUM_FOLDS, "group_by": None}
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


@pytest.fixture
def folds(trained_run: Path, tmp_path: Path) -> list[Path]:
    return [variant(trained_run, tmp_path / f"x-fold{fold}", fold, fold) for fold in range(NUM_FOLDS)]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_an_ensemble_s_folder_is_asked_like_its_models(folds: list[Path], spark_root: Path, tmp_path: Path) -> None:
    """evaluate, predict and submit: of the folder, and of the models one after another."""
    models = [str(run) for run in folds]
    folder, output = tmp_path / "x-folds", tmp_path / "out"
    assert leave("runs", "ensemble", *models, "--output", str(folder)) == 0
    assert leave("evaluate", str(folder), "--worst", "0") == 0
    on_disk = ("--set", "data.cross_validation.fold=null")
    assert leave("evaluate", *models, "--output", str(output), "--worst", "0", *on_disk) == 0
    one, other = results(folder / "evaluation" / "val"), results(output)
    differ = {"record", "seconds_per_image"}
    assert {k: v for k, v in one.items() if k not in differ} == {k: v for k, v in other.items() if k not in differ}
    folders = [Path(model["folder"]) for model in one["record"]["models"]]
    assert [path.parts[-2:] for path in folders] == [(run.name, "best") for run in folds]
    images = spark_root / "stream-1-test"
    assert leave("submit", str(folder), "--images", str(images)) == 0
    assert leave("submit", *models, "--images", str(images), "--output", str(tmp_path / "zip")) == 0
    for file in sorted((tmp_path / "zip").glob("*.npz")):
        assert file.read_bytes() == (folder / "submission" / file.name).read_bytes()
    assert leave("predict", str(folder), str(images)) == 0
    assert leave("predict", *models, str(images), "--output", str(tmp_path / "masks")) == 0
    for image in images.iterdir():
        masks = [place / "ids" / f"{image.stem}.png" for place in (tmp_path / "masks", folder / "predictions")]
        assert masks[0].read_bytes() == masks[1].read_bytes()


def test_predictions_of_an_ensemble_need_a_folder(
    folds: list[Path], spark_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, images = [str(run) for run in folds[:2]], spark_root / "stream-1-test"
    assert leave("submit", *models, "--images", str(images)) == 2
    assert "the predictions of an ensemble belong to no run: give --output" in capsys.readouterr().err
    assert leave("predict", *models, str(images)) == 2
    assert "the masks of an ensemble belong to no run: give --output" in capsys.readouterr().err


def test_out_of_fold_evaluations_are_those_of_every_training_image(
    folds: list[Path], tmp_path: Path, trained_run: Path
) -> None:
    parts = []
    for run in folds:
        assert leave("evaluate", str(run), "--worst", "0") == 0
        parts.append(run / "evaluation" / "val")
        assert results(parts[-1])["record"]["split_is"] == f"val (fold {run.name[-1]} of 3 of train)"
    assert leave("evaluate", "--merge", *map(str, parts), "--output", str(tmp_path / "oof")) == 0
    joined = results(tmp_path / "oof")
    assert joined["num_images"] == sum(results(part)["num_images"] for part in parts) == 12
    confusion = sum(np.array(results(part)["confusion"]) for part in parts)
    assert np.array_equal(joined["confusion"], confusion)


def test_a_model_is_not_evaluated_on_images_that_it_was_trained_on(
    folds: list[Path], trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", str(tmp_path / "out"), "--worst", "0")
    for given in (
        [str(folds[0]), str(folds[1])],
        [str(folds[0]), "--set", "data.cross_validation.fold=1"],
        [str(trained_run), "--set", "data.cross_validation.fold=1"],
    ):
        assert leave("evaluate", *given, *output) == 2
        assert "was trained on images of val (fold" in capsys.readouterr().err
    assert leave("evaluate", str(folds[0]), "--set", "data.cross_validation.fold=null", "--worst", "0") == 0
    assert (folds[0] / "evaluation" / "val-fold_None" / "results.json").is_file(), "not in the place of its own fold's"


def test_what_is_no_longer_the_ensemble_is_refused(folds: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "both"
    make_ensemble(folds[:2], folder)
    with pytest.raises(UserError, match="this exists"):
        make_ensemble(folds[:2], folder)
    variant(folds[2], tmp_path / "new", 7)
    shutil.copytree(tmp_path / "new" / "best", folds[1] / "best", dirs_exist_ok=True)
    with group_of_one() as group, pytest.raises(CheckpointError, match="has other weights than when the ensemble"):
        Session.open(folder, InferenceSettings(), group)
    shutil.rmtree(folds[1])
    with group_of_one() as group, pytest.raises(CheckpointError, match="its member .* is gone"):
        Session.open(folder, InferenceSettings(), group)
    (folder / "ensemble.json").write_text('{"format": 1, "members": []}')
    with group_of_one() as group, pytest.raises(UserError, match="members"):
        Session.open(folder, InferenceSettings(), group)


def test_what_is_of_one_model_says_so(folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "both"
    make_ensemble(folds[:2], folder)
    for given in (
        ("export", str(folder), "--format", "safetensors"),
        ("anomaly", "fit", str(folder)),
        ("evaluate", str(folder), "--compare-inference"),
    ):
        assert leave(*given) == 2
        assert "is of one model, and these are 2" in capsys.readouterr().err


def test_the_mean_of_the_last_checkpoints(spark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    keep = ("output.keep_checkpoints=3", "output.checkpoint_every_steps=3")
    run_on_ranks(1, short_run, str(spark_root), str(run), keep)
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 3
    assert leave("evaluate", str(run), "--average-checkpoints", "2", "--worst", "0") == 0
    states = [load_file(path / "model.safetensors") for path in checkpoints[-2:]]
    found = load_file(run / "average-2" / "model.safetensors")
    assert set(found) == set(states[0])
    for name, tensor in found.items():
        expected = torch.stack([state[name].double() for state in states]).mean(0)
        expected = expected.float() if tensor.is_floating_point() else states[-1][name]
        assert torch.equal(tensor, expected), name
    assert (run / "evaluation" / "val-average-2" / "results.json").is_file()
    assert "mean of the checkpoints at steps" in (run / "average-2" / "README.md").read_text()
    assert leave("evaluate", str(run), "--average-checkpoints", "4") == 2
    message = capsys.readouterr().err
    assert "3 checkpoints, 4 are asked for; output.keep_checkpoints says how many a run keeps" in message
