from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segformer_spark.data.window import window_around
from segformer_spark.errors import UserError
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.files.checksums import write_checksums
from segformer_spark.submission.spark_format import write_prediction
from segformer_spark.submission.submit import SubmitOptions, run_submission
from tests.conftest import NUM_TEST, SIDE
from tests.data.image_files import encode, picture, save
from tests.ranks import Group, run_on_ranks


def submit(group: Group, model: str, images: str, output: str, tta: str = "none", overwrite: bool = False) -> str:
    settings = InferenceSettings(tta=tta)
    options = SubmitOptions(Path(model), Path(images), Path(output), inference=settings, overwrite=overwrite)
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
    assert manifest["training"]["config"]["model"]["variant"] == "custom"


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
    assert [path.name for path in output.glob(".*")] == [".lease"]


def test_swapped_and_foreign_files_are_predicted_anew(
    finished: Path, trained_run: Path, spark_root: Path, tmp_path: Path
) -> None:
    """By their comment: they are valid predictions, of another image, or of another model."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    first, second = (output / f"test_0000{number}_layer.npz" for number in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    ids = np.zeros((SIDE, SIDE), np.uint8)
    write_prediction(output / "test_00002_layer.npz", ids, "image sha256 0, settings sha256 0")
    write_prediction(output / "test_00003_layer.npz", ids)
    run_on_ranks(1, submit, *paths(trained_run, spark_root, output), "hflip")
    assert (first.read_bytes(), second.read_bytes()) == (one, other)
    assert digest(output / "submission.zip") == digest(finished / "submission.zip")
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["files"]["test_00002_layer.npz"] == digest(output / "test_00002_layer.npz")


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
    write_checksums(card.parent)
    (message,) = run_on_ranks(1, submit, str(model), str(spark_root / "stream-1-test"), str(tmp_path / "o"))
    assert "needs the classes background, body, panels" in message


def test_a_damaged_image_is_named(trained_run: Path, own_spark_root: Path, tmp_path: Path) -> None:
    image = own_spark_root / "stream-1-test" / "test_00002_img.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    for message in run_on_ranks(2, submit, *paths(trained_run, own_spark_root, tmp_path / "o")):
        assert "test_00002_img.jpg: the file is truncated" in message, "on the rank that met it and on the other"
    assert not (tmp_path / "o" / "submission.zip").exists()


def oriented(group: Group, model: str, images: str, output: str, orientation: str | None) -> str:
    settings = InferenceSettings(exif_orientation=orientation)  # type: ignore[arg-type]
    return str(run_submission(SubmitOptions(Path(model), Path(images), Path(output), inference=settings), group))


@pytest.mark.parametrize(("orientation", "shape"), [(None, (24, 40, 3)), ("upright", (40, 24, 3))])
def test_a_turned_image_is_predicted_as_it_is_stored(
    trained_run: Path, tmp_path: Path, orientation: str | None, shape: tuple[int, ...]
) -> None:
    save(tmp_path / "images" / "test_00000_img.jpg", encode(picture(24, 40), "JPEG", 6))
    where = str(trained_run / "best"), str(tmp_path / "images"), str(tmp_path / "out")
    run_on_ranks(1, oriented, *where, orientation)
    with np.load(tmp_path / "out" / "test_00000_layer.npz") as archive:
        assert archive["data"].shape == shape


def write_boxes(images: Path, table: Path, number: int = NUM_TEST) -> dict[str, tuple[int, int, int, int]]:
    boxes = {path.name: (10 + i, 20, 40 + i, 45) for i, path in enumerate(sorted(images.iterdir())[:number])}
    lines = ["Image name,Bounding box", *(f'{name},"{box}"' for name, box in boxes.items())]
    table.write_text("\n".join(lines) + "\n")
    return boxes


def submit_crops(group: Group, model: str, images: str, output: str, crops: str, table: str | None) -> str:
    boxes = Path(table) if table is not None else None
    settings = InferenceSettings(crops=crops)
    options = SubmitOptions(Path(model), Path(images), Path(output), inference=settings, boxes=boxes)
    try:
        return str(run_submission(options, group))
    except UserError as error:
        return f"error: {error}"


@pytest.fixture(scope="module")
def everything_is_body(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls every pixel it is shown body."""
    folder = Path(shutil.copytree(trained_run / "best", tmp_path_factory.mktemp("body") / "best"))
    tensors = load_file(folder / "model.safetensors")
    tensors["decode_head.classifier.weight"].zero_()
    tensors["decode_head.classifier.bias"].copy_(torch.tensor([0.0, 5.0, 0.0]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_checksums(folder)
    return folder


@pytest.mark.parametrize("world", [1, 2])
def test_crops_around_the_boxes_of_a_csv(
    everything_is_body: Path, spark_root: Path, tmp_path: Path, world: int
) -> None:
    images, table = spark_root / "stream-1-test", tmp_path / "boxes.csv"
    boxes = write_boxes(images, table)
    arguments = (str(everything_is_body), str(images), str(tmp_path / "out"), "box", str(table))
    assert run_on_ranks(world, submit_crops, *arguments)[0].endswith("submission.zip")
    for name, box in boxes.items():
        window = window_around(box, 0.25, (SIDE, SIDE))
        expected = np.zeros((SIDE, SIDE), bool)
        expected[window.top : window.top + window.height, window.left : window.left + window.width] = True
        data = np.load(tmp_path / "out" / name.replace("_img.jpg", "_layer.npz"))["data"]
        np.testing.assert_array_equal(data[..., 0], expected)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inference"]["crops"] == "box"
    write_boxes(images, table, NUM_TEST)
    table.write_text(table.read_text().replace("(10, ", "(11, "))
    assert "other settings" in run_on_ranks(1, submit_crops, *arguments)[0], "other boxes, other predictions"


@pytest.mark.parametrize("world", [1, 2])
def test_two_passes(everything_is_body: Path, spark_root: Path, tmp_path: Path, world: int) -> None:
    images = spark_root / "stream-1-test"
    arguments = (str(everything_is_body), str(images), str(tmp_path / "out"), "two_pass", None)
    assert run_on_ranks(world, submit_crops, *arguments)[0].endswith("submission.zip")
    assert all(np.load(path)["data"][..., 0].all() for path in (tmp_path / "out").glob("*.npz"))


def test_boxes_that_are_missing_or_not_wanted(everything_is_body: Path, spark_root: Path, tmp_path: Path) -> None:
    images, table = spark_root / "stream-1-test", tmp_path / "boxes.csv"
    write_boxes(images, table, NUM_TEST - 2)

    def error(crops: str, boxes: Path | None) -> str:
        output = str(tmp_path / "out")
        path = None if boxes is None else str(boxes)
        return run_on_ranks(1, submit_crops, str(everything_is_body), str(images), output, crops, path)[0]

    assert "no box for 2 test images, first test_00003_img.jpg" in error("box", table)
    assert "give --boxes FILE.csv, or --crops two_pass" in error("box", None)
    assert "--boxes goes with --crops box" in error("two_pass", table)
    table.write_text("Image name,Bounding box\nx.jpg,nowhere\n")
    assert "boxes.csv:2: the bounding box 'nowhere' is not" in error("box", table)
    assert "cannot be read" in error("box", tmp_path / "none.csv") or "CSV" in error("box", tmp_path / "none.csv")
