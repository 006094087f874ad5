from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.overlay import color_mask, overlay
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.errors import UserError
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.evaluation.pictures import draw_categories, draw_confusion
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.files.checksums import write_checksums
from tests.conftest import NUM_VAL, SIDE
from tests.ranks import Group, run_on_ranks


def evaluate(group: Group, run: str, output: str, split: str = "val", tta: str = "none") -> dict[str, Any]:
    options = EvaluateOptions(
        Path(run) / "best", split, Path(output), num_worst=3, inference=InferenceSettings(tta=tta, batch_size=2)
    )
    return run_evaluation(load_config(Path(run) / "config.yaml"), options, group)


@pytest.fixture(scope="module")
def results(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("evaluation") / "val"
    return run_on_ranks(1, evaluate, str(trained_run), str(output))[0], output


def test_figures_are_those_of_training_s_validation(results: tuple[dict[str, Any], Path], trained_run: Path) -> None:
    """The best checkpoint was validated at the same native resolution."""
    card = json.loads((trained_run / "best" / "segformer_spark.json").read_text())
    for key in ("miou", "spark_score", "pixel_accuracy", "miou_without_background"):
        assert results[0][key] == card["metrics"][key]


def examples(group: Group, run: str, output: str) -> None:
    options = EvaluateOptions(Path(run) / "best", "val", Path(output), num_worst=0, num_examples=2)
    run_evaluation(load_config(Path(run) / "config.yaml"), options, group)


def test_examples_are_the_first_the_worst_the_middle_and_the_best(
    results: tuple[dict[str, Any], Path], trained_run: Path, tmp_path: Path
) -> None:
    run_on_ranks(1, examples, str(trained_run), str(tmp_path / "val"))
    pictures = {path.stem: cv2.imread(str(path)) for path in (tmp_path / "val" / "examples").glob("*.png")}
    assert set(pictures) == {"first", "worst", "median", "best"}
    with (results[1] / "per_image.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    quality = []
    for row in rows:
        known = [float(v) for k, v in row.items() if k.startswith("iou_") and k != "iou_background" and v]
        quality.append(np.mean(known) if known else 1.0)
    order = np.argsort(quality, kind="stable")
    worst = cv2.imread(str(sorted((results[1] / "worst").glob("01_*.png"))[0]))
    assert rows[order[0]]["image"] in sorted((results[1] / "worst").glob("01_*.png"))[0].name
    np.testing.assert_array_equal(pictures["worst"][: len(worst)], worst)
    assert all(picture.shape == (2 * len(worst), worst.shape[1], 3) for picture in pictures.values())
    assert not np.array_equal(pictures["best"], pictures["worst"])


def assert_equal_counts(one: dict[str, Any], other: dict[str, Any]) -> None:
    """All figures are equal; calibration to the rounding of probabilities in batches of another size."""
    for key in one.keys() | other.keys():
        if key == "calibration":
            assert one[key]["ece"] == pytest.approx(other[key]["ece"], abs=1e-6)
            assert sum(b["pixels"] for b in one[key]["bins"]) == sum(b["pixels"] for b in other[key]["bins"])
        else:
            assert one[key] == other[key], key


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_matter(
    results: tuple[dict[str, Any], Path], trained_run: Path, tmp_path: Path, world: int
) -> None:
    for metrics in run_on_ranks(world, evaluate, str(trained_run), str(tmp_path / "val")):
        assert_equal_counts(metrics, results[0])
    assert (tmp_path / "val" / "per_image.csv").read_bytes() == (results[1] / "per_image.csv").read_bytes()


def test_files(results: tuple[dict[str, Any], Path]) -> None:
    metrics, output = results
    stored = json.loads((output / "results.json").read_text())
    record = stored.pop("record")
    assert stored == json.loads(json.dumps(metrics))
    assert stored["num_pixels"] == NUM_VAL * SIDE * SIDE
    assert record["resolution"] == "native"
    assert record["training"]["config"]["training"]["epochs"] == 3
    assert record["hardware"][0]["cpu_cores"] >= 1
    assert record["card"]["image_size"] == [64, 64]
    assert sum(group["num_images"] for group in stored["categories"].values()) == NUM_VAL
    for name in ("confusion.png", "scores.png"):
        assert (output / "figures" / name).read_bytes().startswith(b"\x89PNG")
    with (output / "confusion.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [[int(row[name]) for name in SPARK_CLASSES.names] for row in rows] == stored["confusion"]


def test_per_image_table_and_worst_panels(results: tuple[dict[str, Any], Path]) -> None:
    _, output = results
    with (output / "per_image.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["image"] for row in rows}) == NUM_VAL
    defined = {row["image"]: [float(row[k]) for k in ("iou_body", "iou_panels") if row[k]] for row in rows}
    quality = {image: np.mean(values) if values else 1.0 for image, values in defined.items()}
    worst = sorted((output / "worst").iterdir())
    assert [path.stem[3:] for path in worst] == sorted(quality, key=lambda name: quality[name])[:3]
    panel = cv2.imread(str(worst[0]))
    assert panel is not None
    assert panel.shape[0] == SIDE + 44
    assert panel.shape[1] == 4 * SIDE + 18


def fails(group: Group, *arguments: Any) -> str:
    try:
        evaluate(group, *arguments)
    except UserError as error:
        return str(error)
    return ""


def test_a_model_of_other_classes_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    card = run / "best" / "segformer_spark.json"
    card.write_text(card.read_text().replace('"panels"', '"antenna"'))
    write_checksums(card.parent)
    assert "knows the classes background, body, antenna" in run_on_ranks(1, fails, str(run), str(tmp_path / "x"))[0]


def test_pictures() -> None:
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    np.testing.assert_array_equal(color_mask(mask, SPARK_CLASSES)[1], [(0, 0, 255), (128, 128, 128)])
    laid = overlay(np.full((2, 2, 3), 100, np.uint8), mask, SPARK_CLASSES)
    np.testing.assert_array_equal(laid[0], [(100, 100, 100), (177, 50, 50)])


def evaluate_crops(
    group: Group, run: str, output: str, crops: str | None, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    settings = InferenceSettings(batch_size=2, crops=crops)
    options = EvaluateOptions(Path(run) / "best", "val", Path(output), num_worst=1, inference=settings)
    return run_evaluation(load_config(Path(run) / "config.yaml", overrides=overrides), options, group)


@pytest.mark.parametrize("crops", ["box", "two_pass"])
def test_crops_are_the_same_on_any_number_of_ranks(trained_run: Path, tmp_path: Path, crops: str) -> None:
    one, *_ = run_on_ranks(1, evaluate_crops, str(trained_run), str(tmp_path / "one"), crops)
    for metrics in run_on_ranks(2, evaluate_crops, str(trained_run), str(tmp_path / "two"), crops):
        assert_equal_counts(metrics, one)
    record = json.loads((tmp_path / "one" / "results.json").read_text())["record"]
    assert record["inference"]["crops"] == crops
    assert sum(size["num_images"] for size in one["object_sizes"].values()) == NUM_VAL


def test_set_changes_what_is_shown_and_the_option_wins(trained_run: Path, tmp_path: Path) -> None:
    settings = ("inference.crops=two_pass", "inference.crop_margin=0.5")
    run_on_ranks(1, evaluate_crops, str(trained_run), str(tmp_path / "a"), "box", settings)
    shown = json.loads((tmp_path / "a" / "results.json").read_text())["record"]["inference"]
    assert (shown["crops"], shown["crop_margin"]) == ("box", 0.5)


def test_figures_of_many_classes_stay_small(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(150)]
    draw_confusion(np.eye(150, dtype=np.int64), names, tmp_path / "c.png")
    per_class = {name: {"iou": 0.5} for name in names}
    draw_categories({"categories": {}, "per_class": per_class, "miou": 0.5}, [(0, 0, 0)] * 150, tmp_path / "g.png")
    for name in ("c.png", "g.png"):
        assert max(cv2.imread(str(tmp_path / name)).shape) < 2500
