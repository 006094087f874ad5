"""`predict`: the files, on any number of ranks, again after a cut, of every kind of model."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerForSemanticSegmentation

from segformer_spark.config.schema import ModelConfig
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.errors import UserError
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.models.registry import MODELS, build_network, describe_model
from segformer_spark.models.segformer import segformer_config
from segformer_spark.prediction.predict import PredictOptions, run_prediction
from tests.data.image_files import ORIENTATION, encode, picture, save
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one
from tests.tiny import TINY, export_live, export_tiny, tiny_segformer, untrained_card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(7):
        kind = ("JPEG", "PNG", "TIFF")[index % 3]
        save(
            folder / f"{'sub/' if index % 2 else ''}{index}.{kind.lower()[:4]}",
            encode(picture(40 + index, 61, index), kind),
        )
    return folder


def predict(group: Group, model: str, photos: str, output: str, settings: dict[str, Any], **options: Any) -> Any:
    given = InferenceSettings(**{"keep_images": True, **settings})
    try:
        return run_prediction(
            PredictOptions(Path(model), [Path(photos)], Path(output), inference=given, **options), group
        )
    except UserError as error:
        return f"error: {error}"


def predicted(group: Group, model: str, photos: str, output: str, options: dict[str, Any]) -> str:
    found = predict(group, model, photos, output, {}, **options)
    return found if isinstance(found, str) else ""


def alone(model: Path, photos: Path, output: Path, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    with group_of_one() as group:
        return predict(group, str(model), str(photos), str(output), settings or {}, **options)


def digests(folder: Path) -> dict[str, str]:
    files = [path for kind in ("ids", "color", "overlay", "probabilities") for path in folder.glob(f"{kind}/**/*.*")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


@pytest.fixture(scope="module")
def finished(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("predicted") / "out"
    rows = alone(model, photos, output, kinds=("ids", "color", "overlay", "probabilities"))
    assert len(rows) == 7
    return output


def test_ids_are_those_of_the_session(finished: Path, model: Path, photos: Path) -> None:
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    with group_of_one() as group:
        session = Session.open(model, InferenceSettings(), group)
        expected = {item.index: ids for item, ids in session.predictions(session.file_items(files, range(len(files))))}
        for item, probabilities in session.probabilities(session.file_items(files, range(len(files)))):
            name = files[item.index].relative_to(photos).with_suffix("")
            ids = np.asarray(PIL.Image.open(finished / "ids" / f"{name}.png"))
            np.testing.assert_array_equal(ids, expected[item.index].numpy())
            with np.load(finished / "probabilities" / f"{name}.npz") as archive:
                kept = archive["probabilities"]
            assert kept.dtype == np.uint8
            assert np.abs(kept / 255 - probabilities.numpy()).max() <= 0.5 / 255 + 1e-6
            row = next(row for row in table(finished) if row["image"] == str(name))
            assert float(row["confidence"]) == pytest.approx(float(probabilities.amax(0).mean()), abs=6e-5)
            assert float(row["share_panels"]) == pytest.approx((ids == 2).mean(), abs=1e-6)
            assert (int(row["height"]), int(row["width"])) == ids.shape


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_colours_are_a_palette_and_overlays_pictures(finished: Path) -> None:
    with PIL.Image.open(finished / "color" / "0.png") as color, PIL.Image.open(finished / "ids" / "0.png") as ids:
        assert color.mode == "P"
        np.testing.assert_array_equal(np.asarray(color), np.asarray(ids))
        expected = np.asarray(SPARK_CLASSES.colors, np.uint8)[np.asarray(ids)]
        np.testing.assert_array_equal(np.asarray(color.convert("RGB")), expected)
    with PIL.Image.open(finished / "overlay" / "0.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (61, 40))
    rows = list(csv.reader((finished / "classes.csv").open()))
    assert rows[1][:2] == ["0", "background"]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_a_byte(finished: Path, model: Path, photos: Path, tmp_path: Path, world: int) -> None:
    options = {"kinds": ("ids", "color", "overlay", "probabilities")}
    assert run_on_ranks(world, predicted, str(model), str(photos), str(tmp_path / "o"), options) == [""] * world
    assert digests(tmp_path / "o") == digests(finished)
    assert table(tmp_path / "o") == table(finished)


def test_it_continues_where_it_was_cut_off(finished: Path, model: Path, photos: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (output / "ids" / "0.png").unlink()
    (output / "overlay" / "2.png").unlink()
    kept = (output / "ids" / "4.png").stat().st_mtime_ns
    alone(model, photos, output, kinds=("ids", "color", "overlay", "probabilities"))
    assert (output / "ids" / "4.png").stat().st_mtime_ns == kept
    assert digests(output) == digests(finished)


def test_another_image_of_the_same_name_is_predicted_anew(model: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "photos"))
    alone(model, own, tmp_path / "out")
    before = (tmp_path / "out" / "ids" / "0.png").read_bytes()
    shutil.copy(own / "2.tiff", own / "0.jpeg")
    alone(model, own, tmp_path / "out")
    assert (tmp_path / "out" / "ids" / "0.png").read_bytes() != before


def test_results_of_another_model_or_setting_are_not_mixed(
    finished: Path, model: Path, photos: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    other = export_live(
        tiny_segformer(SPARK_CLASSES.names, seed=1), tmp_path / "other", untrained_card(SPARK_CLASSES, dataset="spark")
    )
    kinds = ("ids", "color", "overlay", "probabilities")
    assert "another model or other settings (model_sha256)" in alone(other, photos, output, kinds=kinds)
    assert "(tta)" in alone(model, photos, output, {"tta": "hflip"}, kinds=kinds)
    assert digests(output) == digests(finished)
    alone(other, photos, output, kinds=kinds, overwrite=True)
    assert json.loads((output / "manifest.json").read_text())["num_images"] == 7
    assert digests(output) != digests(finished)


def test_an_overwrite_that_was_cut_off_leaves_nothing_of_the_other_model(
    finished: Path, model: Path, photos: Path, tmp_path: Path
) -> None:
    """settings.json is the new call's already, and the first image is done."""
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    kinds = ("ids", "color", "overlay", "probabilities")
    alone(model, photos, tmp_path / "new", {"tta": "hflip"}, kinds=kinds)
    for name in ("settings.json", "probabilities/0.npz", "color/0.png", "overlay/0.png", "ids/0.png"):
        shutil.copy(tmp_path / "new" / name, output / name)
    alone(model, photos, output, {"tta": "hflip"}, kinds=kinds)
    assert digests(output) == digests(tmp_path / "new")


def test_a_folder_of_other_things_is_left_alone(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "is not empty and holds no predictions" in alone(model, photos, tmp_path / "out")


@pytest.mark.parametrize("orientation", ["stored", "upright"])
def test_orientation(model: Path, tmp_path: Path, orientation: str) -> None:
    save(tmp_path / "photos" / "a.jpg", encode(picture(24, 40), "JPEG", 6))
    alone(model, tmp_path / "photos", tmp_path / "out", {"exif_orientation": orientation})
    with PIL.Image.open(tmp_path / "out" / "ids" / "a.png") as ids:
        assert ids.size == ((40, 24) if orientation == "stored" else (24, 40))
        assert ids.getexif().get(ORIENTATION, 1) == (6 if orientation == "stored" else 1)
    with PIL.Image.open(tmp_path / "out" / "overlay" / "a.png") as overlay:
        assert overlay.size == (24, 40), "overlays are upright"
        assert overlay.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (encode(picture(), "PNG")[:-40], "truncated or damaged"),
        (encode(np.zeros((9, 9), np.float32), "TIFF"), "floating-point"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\0\x08\0\0\0\0" + bytes(4), "no valid IHDR"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(model: Path, tmp_path: Path, content: bytes, message: str) -> None:
    save(tmp_path / "photos" / "bad.png", content)
    found = alone(model, tmp_path / "photos", tmp_path / "out")
    assert "bad.png" in found
    assert message in found
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_one_bit_images_are_black_and_white(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.tif", encode(picture(30, 30)[..., 0] > 128, "TIFF"))
    assert len(alone(model, tmp_path / "photos", tmp_path / "out")) == 1


def test_too_large_images_are_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    assert "raise --max-pixels" in alone(model, photos, tmp_path / "out", {"max_pixels": 100})


@pytest.mark.parametrize("name", [name for name in MODELS if name != "segformer"])
def test_every_model_of_the_registry(name: str, tmp_path: Path) -> None:
    small = {"vit": "vit_tiny_patch16_224", "hiera": "hiera_tiny_224"}
    config = ModelConfig(name=name, encoder=small.get(name), pretrained="none")
    torch.manual_seed(0)
    network = build_network(config, 3, (64, 64)).eval()
    card = replace(untrained_card(SPARK_CLASSES), model=describe_model(config))
    folder = export_live(network, tmp_path / "model", card)
    save(tmp_path / "photos" / "a.png", encode(picture(50, 70), "PNG"))
    (row,) = alone(folder, tmp_path / "photos", tmp_path / "out")
    assert sum(row.pixels) == 50 * 70
    assert {"config.json", "preprocessor_config.json", "README.md"} <= {path.name for path in folder.iterdir()}


def test_a_published_segformer_that_was_not_trained_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SegformerForSemanticSegmentation(segformer_config(TINY, ["wall", "floor"]))
    folder = tmp_path / "segformer-64-64"
    network.save_pretrained(folder)
    save(tmp_path / "photos" / "a.png", encode(picture(50, 70), "PNG"))
    alone(folder, tmp_path / "photos", tmp_path / "out")
    assert list(table(tmp_path / "out")[0]) == ["image", "width", "height", "confidence", "share_wall", "share_floor"]


def test_a_foreign_model_is_named(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "upernet", "id2label": {"0": "a"}}')
    found = alone(tmp_path / "model", photos, tmp_path / "out")
    assert "its model_type is 'upernet', segformer is expected" in found


def test_crops_around_boxes_need_another_way(model: Path, photos: Path, tmp_path: Path) -> None:
    assert "Give --crops two_pass" in alone(model, photos, tmp_path / "out", {"crops": "box"})
    assert len(alone(model, photos, tmp_path / "out", {"crops": "two_pass"})) == 7
