"""Folders of evaluations: verified, resumed, merged, and scored from masks of other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError, UserError
from segformer_spark.evaluation import collect as collecting
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.evaluation.score_predictions import merge_evaluations, score_predictions
from segformer_spark.evaluation.verify import verify_evaluation
from segformer_spark.files.checksums import check_checksums, write_checksums
from segformer_spark.submission.spark_format import write_prediction
from tests.conftest import NUM_VAL
from tests.edited_bytes import edited_bytes
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one
from tests.verbs import leave


def evaluate(group: Group, run: str, output: str, shard: tuple[int, int] | None = None, worst: int = 2) -> Any:
    options = EvaluateOptions(Path(run) / "best", "val", Path(output), num_worst=worst, shard=shard)
    return run_evaluation(load_config(Path(run) / "config.yaml"), options, group)


@pytest.fixture(scope="module")
def evaluation(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "val"
    run_on_ranks(1, evaluate, str(trained_run), str(folder))
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    del found["record"]
    return found


def test_an_evaluation_is_verified_without_the_package_too(evaluation: Path) -> None:
    found = verify_evaluation(evaluation)
    assert found.faults == []
    assert any("spark_score" in line for line in found.recomputed)
    assert "figures/confusion.png" in found.hashed
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=evaluation, check=False)
    assert done.returncode == 0
    digest = subprocess.run(["sha256sum", "SHA256SUMS"], cwd=evaluation, capture_output=True, text=True, check=True)
    assert digest.stdout.split()[0] == found.digest


def test_every_edited_byte_is_found(evaluation: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(evaluation, tmp_path / "val"))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".lease")
    for edit in edited_bytes(files, 1000):
        assert check_checksums(folder) != [], edit
    assert verify_evaluation(folder).faults == []
    (folder / "extra.txt").write_text("x")
    (folder / "per_image.csv").unlink()
    faults = verify_evaluation(folder).faults
    assert "extra.txt: not in SHA256SUMS" in faults
    assert "per_image.csv: missing" in faults


@pytest.mark.parametrize("key", ["miou", "spark_score", "intervals", "boundary_iou", "edges", "calibration", "miou_c"])
def test_a_changed_metric_is_found_although_its_digest_was_renewed(evaluation: Path, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(evaluation, tmp_path / "val"))
    stored = json.loads((folder / "results.json").read_text())
    stored[key] = {"mean": 0.99} if isinstance(stored[key], dict) else 0.99
    (folder / "results.json").write_text(json.dumps(stored))
    write_checksums(folder)
    faults = verify_evaluation(folder).faults
    assert len(faults) == 1
    assert f"results.json: {key} does not follow from counts.npz" in faults[0]


def test_the_verb_leaves_with_1_for_a_fault(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("verify", str(evaluation)) == 0
    folder = Path(shutil.copytree(evaluation, tmp_path / "val"))
    text = (folder / "per_image.csv").read_text()
    (folder / "per_image.csv").write_text(text.replace("0.", "1.", 1))
    assert leave("verify", str(folder)) == 1
    said = capsys.readouterr().out
    assert "wrong: per_image.csv: changed" in said
    assert "wrong: per_image.csv: does not follow from counts.npz" in said
    assert leave("verify", str(tmp_path)) == 2


def shards(group: Group, run: str, output: str, number: int) -> None:
    for shard in range(number):
        evaluate(group, run, f"{output}{shard}", (shard, number), 0)


@pytest.mark.parametrize("number", [2, 3])
def test_shards_joined_are_the_whole(evaluation: Path, trained_run: Path, tmp_path: Path, number: int) -> None:
    run_on_ranks(2 if number == 2 else 1, shards, str(trained_run), str(tmp_path / "part"), number)
    parts = [tmp_path / f"part{shard}" for shard in range(number)]
    assert leave("evaluate", "--merge", *map(str, parts), "--output", str(tmp_path / "whole")) == 0
    merged, whole = results(tmp_path / "whole"), results(evaluation)
    for key in whole.keys() - {"calibration"}:
        assert merged[key] == whole[key], key
    assert verify_evaluation(tmp_path / "whole").faults == []
    with pytest.raises(UserError, match="both evaluated"):
        merge_evaluations([parts[0], parts[0]], tmp_path / "x")
    (parts[0] / "counts.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"not as they were written, first counts\.npz: changed"):
        merge_evaluations(parts, tmp_path / "x")


def killed_then_continued(group: Group, run: str, output: str) -> tuple[int, Any]:
    """Saves after every image, ends after the third, and goes on."""
    collecting._MOST_IMAGES = 1
    counted = []
    count_image = collecting.count_image

    def counting(index: int, *given: Any) -> Any:
        if len(counted) == 3:
            raise KeyboardInterrupt
        counted.append(index)
        return count_image(index, *given)

    collecting.count_image = counting
    try:
        evaluate(group, run, output, None, 0)
    except KeyboardInterrupt:
        collecting.count_image = count_image
    again = []
    collecting.count_image = lambda index, *given: again.append(index) or count_image(index, *given)
    metrics = evaluate(group, run, output, None, 0)
    return len(again), metrics


def test_an_evaluation_that_was_cut_off_goes_on(evaluation: Path, trained_run: Path, tmp_path: Path) -> None:
    ((again, metrics),) = run_on_ranks(1, killed_then_continued, str(trained_run), str(tmp_path / "val"))
    assert again == NUM_VAL - 3
    metrics, whole = json.loads(json.dumps(metrics)), results(evaluation)
    for key in whole.keys() - {"calibration"}:
        assert metrics[key] == whole[key], key
    assert not (tmp_path / "val" / ".partial").exists()


@pytest.fixture(scope="module")
def masks(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ids/, color/ and npz/ of the validation images: the truth, with a stripe of another class."""
    config = load_config(trained_run / "config.yaml").config.data
    dataset = open_dataset(config, "val")
    folder = tmp_path_factory.mktemp("masks")
    for index in range(len(dataset)):
        ids = dataset.load(index).mask.copy()
        ids[40:44] = 1
        image = dataset.files(index)[0]
        name = f"{dataset.categories[dataset.category(index)]}/{image.stem}"
        for kind in ("ids", "color", "npz"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "ids" / f"{name}.png"), ids)
        cv2.imwrite(str(folder / "color" / f"{name}.png"), np.array(SPARK_CLASSES.colors, np.uint8)[ids][..., ::-1])
        write_prediction(folder / "npz" / f"{name.removesuffix('_img')}_layer.npz", ids)
    return folder


def test_masks_of_other_programs_are_scored_alike(masks: Path, trained_run: Path, tmp_path: Path) -> None:
    config = load_config(trained_run / "config.yaml").config.data
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as archive:
        for path in (masks / "npz").rglob("*.npz"):
            archive.write(path, path.relative_to(masks / "npz"))
    found = []
    for kind in (masks / "ids", masks / "color", masks / "npz", tmp_path / "sent.zip"):
        output = tmp_path / kind.stem
        found.append(score_predictions(kind, config, "val", output))
        assert verify_evaluation(output).faults == []
    assert found[0] == found[1] == found[2] == found[3]
    dataset = open_dataset(config, "val")
    truth = np.stack([dataset.load(i).mask for i in range(len(dataset))])
    wrong = truth.copy()
    wrong[:, 40:44] = 1
    assert found[0]["pixel_accuracy"] == pytest.approx((truth == wrong).mean(), abs=1e-12)
    assert found[0]["calibration"] is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: cv2.imwrite(str(p), np.full((96, 96), 7, np.uint8)), "holds the id 7, which is no class"),
        (lambda p: cv2.imwrite(str(p), np.zeros((96, 95), np.uint8)), "96 x 95 pixels, its image has 96 x 96"),
        (lambda p: cv2.imwrite(str(p), np.full((96, 96, 3), 9, np.uint8)), r"colour of no class, such as \(9, 9, 9\)"),
        (lambda p: cv2.imwrite(str(p), np.full((96, 96), 300, np.uint16)), "holds the id 300"),
        (lambda p: p.write_bytes(b"no"), "cannot be read"),
        (lambda p: p.unlink(), "1 images have no prediction"),
    ],
)
def test_faults_are_named_by_file(masks: Path, trained_run: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    folder = Path(shutil.copytree(masks / "ids", tmp_path / "ids"))
    spoil(next(folder.rglob("*.png")))
    with pytest.raises(DataError, match=message):
        score_predictions(folder, load_config(trained_run / "config.yaml").config.data, "val", tmp_path / "out")


def test_one_file_is_no_prediction_of_two_images(masks: Path, trained_run: Path, tmp_path: Path) -> None:
    """Categories repeat names: without their folders the files belong to no image."""
    data = load_config(trained_run / "config.yaml").config.data
    paths = list((masks / "ids").rglob("*.png"))
    assert len({path.name for path in paths}) < len(paths)
    for path in paths:
        shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(DataError, match="has the name of an image"):
        score_predictions(tmp_path, data, "val", tmp_path / "out")


def test_names_that_are_not_ascii_are_sealed(tmp_path: Path) -> None:
    (tmp_path / "Straße.png").write_bytes(b"x")
    write_checksums(tmp_path)
    assert check_checksums(tmp_path) == []
    (tmp_path / "Straße.png").write_bytes(b"z")
    assert check_checksums(tmp_path) == ["Straße.png: changed"]


@pytest.mark.parametrize("name", ["edges", "boundary", "calibration", "cells", "index"])
def test_counts_of_other_shapes_are_a_named_fault(evaluation: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(evaluation, tmp_path / "val"))
    with np.load(folder / "counts.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays[name] = arrays[name][..., :1] if name != "index" else arrays[name][::-1]
    np.savez(folder / "counts.npz", **arrays)
    write_checksums(folder)
    faults = verify_evaluation(folder).faults
    assert any(f"{name} has shape" in fault or "index does not ascend" in fault for fault in faults)


def test_no_overlap_and_no_folder(trained_run: Path, tmp_path: Path) -> None:
    data = load_config(trained_run / "config.yaml").config.data
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of its 0 files has the name of an image"):
        score_predictions(tmp_path / "empty", data, "val", tmp_path / "out")
    with pytest.raises(DataError, match="there is no such folder or zip"):
        score_predictions(tmp_path / "none", data, "val", tmp_path / "out")


def ensemble(group: Group, run: str, output: str, models: list[str]) -> dict[str, Any]:
    options = EvaluateOptions(
        Path(models[0]), "val", Path(output), num_worst=0, others=tuple(Path(one) for one in models[1:])
    )
    return run_evaluation(load_config(Path(run) / "config.yaml"), options, group)


def test_an_ensemble_of_a_model_with_itself_is_the_model(evaluation: Path, trained_run: Path, tmp_path: Path) -> None:
    best = str(trained_run / "best")
    found = run_on_ranks(1, ensemble, str(trained_run), str(tmp_path / "two"), [best, best])[0]
    assert json.loads(json.dumps(found))["confusion"] == results(evaluation)["confusion"]
    record = json.loads((tmp_path / "two" / "results.json").read_text())["record"]
    assert len(record["models"]) == 2


def test_members_of_other_classes_are_refused(trained_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained_run / "best", tmp_path / "other"))
    card = other / "segformer_spark.json"
    card.write_text(card.read_text().replace('"panels"', '"antenna"'))
    write_checksums(card.parent)
    with group_of_one() as group, pytest.raises(UserError, match="an ensemble needs the same classes in one order"):
        ensemble(group, str(trained_run), str(tmp_path / "x"), [str(trained_run / "best"), str(other)])
