from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segformer_spark.errors import UserError
from segformer_spark.submission.submit import SubmitOptions, run_submission
from tests.conftest import NUM_TEST, SIDE
from tests.ranks import Group, run_on_ranks


def submit(group: Group, model: str, images: str, output: str, tta: str = "none", overwrite: bool = False) -> str:
    options = SubmitOptions(Path(model), Path(images), Path(output), tta=tta, num_workers=0, overwrite=overwrite)
    try:
        return str(run_submission(options, group))
    except UserError as error:
        return f"error: {error}"


def paths(trained_run: Path, spark_root: Path, output: Path) -> tuple[str, str, str]:
    return str(trained_run / "best"), str(spark_root / "stream-1-test"), str(output)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(trained_run: Path, spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("submission") / "out"
    assert run_on_ranks(1, submit, *paths(trained_run, spark_root, output), "hflip") == [str(output / "submission.zip")]
    return output


def test_the_zip_is_what_the_challenge_asks(finished: Path) -> None:
    with zipfile.ZipFile(finished / "submission.zip") as archive:
        assert archive.namelist() == [f"test_{i:05d}_layer.npz" for i in range(NUM_TEST)]
        for name in archive.namelist():
            with archive.open(name) as stream, np.load(stream) as prediction:
                data = prediction["data"]
            assert data.shape == (SIDE, SIDE, 3)
            assert data.dtype == np.bool_
            assert not data[..., 1].any()


def test_the_manifest_names_model_and_hardware(finished: Path, trained_run: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["num_images"] == NUM_TEST
    assert manifest["zip_sha256"] == digest(finished / "submission.zip")
    assert manifest["model_sha256"] == digest(trained_run / "best" / "model.safetensors")
    assert manifest["tta"] == "hflip"
    assert manifest["hardware"][0]["memory_gib"] > 0
    assert manifest["training"]["config"]["model"]["variant"] == "b0"


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_a_byte(
    finished: Path, trained_run: Path, spark_root: Path, tmp_path: Path, world: int
) -> None:
    run_on_ranks(world, submit, *paths(trained_run, spark_root, tmp_path / "o"), "hflip")
    assert digest(tmp_path / "o" / "submission.zip") == digest(finished / "submission.zip")


def test_it_continues_where_it_was_cut_off(finished: Path, trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (output / "submission.zip").unlink()
    (output / "test_00001_layer.npz").unlink()
    cut = output / "test_00003_layer.npz"
    cut.write_bytes(cut.read_bytes()[:100])
    (output / ".test_00001_layer.npz.99.tmp").write_bytes(b"half")
    kept = (output / "test_00000_layer.npz").stat().st_mtime_ns
    run_on_ranks(2, submit, *paths(trained_run, spark_root, output), "hflip")
    assert (output / "test_00000_layer.npz").stat().st_mtime_ns == kept
    assert digest(output / "submission.zip") == digest(finished / "submission.zip")
    assert not list(output.glob(".*"))


def test_predictions_of_other_settings_are_not_mixed(
    finished: Path, trained_run: Path, spark_root: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    where = paths(trained_run, spark_root, output)
    (message,) = run_on_ranks(1, submit, *where, "none")
    assert "predictions of another model, other images or other settings" in message
    assert digest(output / "submission.zip") == digest(finished / "submission.zip")
    (target,) = run_on_ranks(1, submit, *where, "none", True)
    assert json.loads((output / "manifest.json").read_text())["tta"] == "none"
    assert target.endswith("submission.zip")


def test_predictions_of_other_images_of_the_same_names_are_not_taken(
    finished: Path, trained_run: Path, own_spark_root: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    images = own_spark_root / "stream-1-test"
    shutil.copy(images / "test_00001_img.jpg", images / "test_00000_img.jpg")
    where = paths(trained_run, own_spark_root, output)
    assert "other images" in run_on_ranks(1, submit, *where, "hflip")[0]
    run_on_ranks(1, submit, *where, "hflip", True)
    assert digest(output / "test_00000_layer.npz") == digest(output / "test_00001_layer.npz")


def test_a_model_of_other_classes_is_refused(trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained_run / "best", tmp_path / "model"))
    card = model / "segformer_spark.json"
    card.write_text(card.read_text().replace('"panels"', '"antenna"'))
    (message,) = run_on_ranks(1, submit, str(model), str(spark_root / "stream-1-test"), str(tmp_path / "o"))
    assert "needs the classes background, body, panels" in message


def test_a_damaged_image_is_named(trained_run: Path, own_spark_root: Path, tmp_path: Path) -> None:
    image = own_spark_root / "stream-1-test" / "test_00002_img.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    for message in run_on_ranks(2, submit, *paths(trained_run, own_spark_root, tmp_path / "o")):
        assert "test_00002_img.jpg: the file is truncated" in message, "on the rank that met it and on the other"
    assert not (tmp_path / "o" / "submission.zip").exists()
