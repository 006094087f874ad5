"""The Python interface: what goes in, what comes out, and that importing it does nothing."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import segformer_spark
from segformer_spark import load
from segformer_spark.config.load import PROJECT_ROOT, load_config
from tests.data.image_files import encode, picture, save
from tests.tiny import export_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> segformer_spark.Model:
    return load(folder, device="cpu")


PIXELS = picture(40, 61)


def test_every_kind_of_image_gives_one_answer(model: segformer_spark.Model, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", encode(PIXELS, "PNG"))
    expected = model.predict(path)
    tensor = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)
    for image in (str(path), PIL.Image.fromarray(PIXELS), PIXELS, tensor, tensor / 255):
        found = model.predict(image)
        assert isinstance(found, segformer_spark.Prediction)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert expected.ids.shape == (40, 61)
    assert expected.ids.dtype == np.uint8
    np.testing.assert_allclose(expected.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(expected.probabilities.argmax(0) == expected.ids, True)


def test_lists_and_batches_give_lists(model: segformer_spark.Model) -> None:
    grey = PIXELS[..., 0]
    found = model.predict([PIXELS, grey, picture(30, 20)], probabilities=False)
    assert [one.ids.shape for one in found] == [(40, 61), (40, 61), (30, 20)]
    assert found[0].probabilities is None
    several = model.predict(np.stack([PIXELS, PIXELS]))
    assert len(several) == 2
    np.testing.assert_array_equal(several[1].ids, found[0].ids)
    assert len(model.predict(torch.zeros(3, 3, 33, 47))) == 3
    assert model.predict([]) == []


def test_what_a_prediction_says(model: segformer_spark.Model, tmp_path: Path) -> None:
    found = model.predict(PIXELS)
    assert found.names == ("background", "body", "panels") == model.names
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.mask("body").sum() == (found.ids == 1).sum()
    with pytest.raises(KeyError, match="the classes are background"):
        found.mask("wing")
    assert found.overlay().size == found.color().size == (61, 40)
    assert found.confidence == pytest.approx(float(found.probabilities.max(0).mean()), abs=1e-6)
    with pytest.raises(segformer_spark.UserError, match="give save"):
        found.save(tmp_path)
    path = found.save(tmp_path / "out", "a")
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), found.ids)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["color", "ids", "overlay"]


def test_turned_photographs_are_shown_upright(model: segformer_spark.Model, tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", encode(PIXELS, "JPEG", 6))
    found = model.predict(path)
    assert found.ids.shape == (40, 61), "as the file stores them"
    assert found.overlay().size == (40, 61)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9, 4), np.uint8), r"shape \(9, 9, 4\)"),
        (np.zeros((9, 9, 3)), "array of float64"),
        (torch.zeros(9, 9, 3), r"tensor of shape \(9, 9, 3\)"),
        (torch.full((3, 9, 9), -1.0), "not normalised"),
        ([3], "a int is no image"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_other_inputs_are_named(model: segformer_spark.Model, image: object, message: str) -> None:
    with pytest.raises(segformer_spark.UserError, match=message):
        model.predict(image)  # type: ignore[call-overload]


def test_importing_does_nothing() -> None:
    code = (
        "import sys, os; before = dict(os.environ); import segformer_spark\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'cv2'} & {*sys.modules}), dict(os.environ) == before)\n"
        "print(sorted(segformer_spark.__all__) == dir(segformer_spark))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\nTrue\n"


def test_public_names_exist_and_are_documented() -> None:
    page = (PROJECT_ROOT / "docs" / "python.md").read_text()
    for name in segformer_spark.__all__:
        assert getattr(segformer_spark, name) is not None
        assert name.startswith("__") or name in page
    with pytest.raises(AttributeError):
        _ = segformer_spark.nothing  # type: ignore[attr-defined]


def test_doctests() -> None:
    assert doctest.testmod(segformer_spark).failed == 0
    assert doctest.testmod(segformer_spark).attempted > 0


def test_train_and_evaluate_with_one_configuration_object(trained_run: Path, tmp_path: Path) -> None:
    changes = [f"output.save_path={tmp_path / 'run'}", "training.epochs=1", "output.tensorboard=false"]
    resolved = load_config(trained_run / "config.yaml", overrides=changes)
    before = dict(os.environ)
    run = segformer_spark.train(resolved.config)
    assert dict(os.environ) == before
    assert run == tmp_path / "run"
    found = segformer_spark.evaluate(run, device="cpu", worst=0)
    assert 0 <= found["miou"] <= 1
    assert (run / "evaluation" / "val" / "results.json").is_file()
    assert load(run, device="cpu").predict(PIXELS).ids.shape == (40, 61)
    with pytest.raises(segformer_spark.UserError, match="overrides go with a configuration file"):
        segformer_spark.train(resolved.config, overrides=["training.epochs=2"])
