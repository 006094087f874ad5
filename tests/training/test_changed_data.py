"""A run that is resumed on other images or masks than it was begun on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from segformer_spark.config.load import load_config
from segformer_spark.config.stored import as_begun
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.errors import UserError
from segformer_spark.files.digest import sha256_of
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.train import TrainOptions, run_training
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import SHORT, short_run
from tests.verbs import leave

STOPPED_AT = 4


def go_on(group: Group, root: str, path: str, accept: bool) -> str:
    """Resume to the end; the message of a refusal, or nothing."""
    settings = [*SHORT, "training.batch_size=4", f"data.root={root}", f"output.save_path={path}"]
    options = TrainOptions(resume="auto", accept_changes=accept)
    try:
        run_training(load_config(overrides=settings), options, group, StopRequest())
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def stopped(own_spark_root: Path, tmp_path: Path) -> Path:
    """A run that was stopped within its second epoch, after one validation."""
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(own_spark_root), str(path), (), None, STOPPED_AT)
    return path


def swap_masks(root: Path, split: str) -> None:
    """Two masks change places: lengths and names alone would hardly tell."""
    dataset = SparkDataset(root, split)
    first, second = dataset.files(0)[1], dataset.files(1)[1]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def edit_state(checkpoint: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's state, and the manifest with it."""
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def checkpoint_of(run: Path) -> Path:
    """The newest."""
    return max((run / "checkpoints").iterdir())


def drop_last(root: Path, split: str) -> None:
    table = root / f"{split}.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")


def resumed(root: Path, path: Path, *, accept: bool = False) -> tuple[str, dict[str, Any]]:
    (message,) = run_on_ranks(1, go_on, str(root), str(path), accept)
    return message, json.loads((path / "training_params.json").read_text())


def test_changed_training_masks_are_refused_until_accepted(own_spark_root: Path, stopped: Path) -> None:
    swap_masks(own_spark_root, "train")
    message, record = resumed(own_spark_root, stopped)
    assert "the training set has other images or masks (sha256" in message
    assert "--accept-changes continues with the changed data" in message
    assert len(record["attempts"]) == 1
    message, record = resumed(own_spark_root, stopped, accept=True)
    assert (message, record["status"], record["steps"]) == ("", "completed", 9)
    assert record["attempts"][1]["accepted_changes"] == ["train"]
    assert "the run goes on with other images or masks than before (train)" in (stopped / "log.txt").read_text()


def test_another_validation_set_begins_the_choice_of_the_best_anew(own_spark_root: Path, stopped: Path) -> None:
    swap_masks(own_spark_root, "val")
    drop_last(own_spark_root, "val")
    message, _ = resumed(own_spark_root, stopped)
    assert "the validation set has other images or masks" in message
    # The score on the former set: nothing would be better.
    edit_state(checkpoint_of(stopped), lambda state: state["best"].update(score=0.999))
    message, record = resumed(own_spark_root, stopped, accept=True)
    assert message == ""
    assert record["attempts"][1]["accepted_changes"] == ["val"]
    assert record["best"]["score"] < 0.999
    assert record["best"]["step"] in (6, 9)
    assert "best model and patience begin anew" in (stopped / "log.txt").read_text()


def test_another_number_of_training_images_begins_the_epoch_anew(own_spark_root: Path, stopped: Path) -> None:
    for _ in range(5):
        drop_last(own_spark_root, "train")  # 7 of 12: one step per epoch
    message, _ = resumed(own_spark_root, stopped)
    assert "the training split had 12 images, now 7" in message
    message, record = resumed(own_spark_root, stopped, accept=True)
    assert (message, record["status"]) == ("", "completed")


def test_an_unchanged_set_that_was_moved_goes_on(own_spark_root: Path, stopped: Path, tmp_path: Path) -> None:
    moved = own_spark_root.rename(tmp_path / "elsewhere")
    message, record = resumed(moved, stopped)
    assert (message, record["status"]) == ("", "completed")
    assert "accepted_changes" not in record["attempts"][1]


def test_a_setting_of_a_later_version_keeps_the_behaviour_of_the_start(own_spark_root: Path, stopped: Path) -> None:
    """The run's files lack it, and the configuration that resumes it does not mention it."""
    tree = yaml.safe_load((stopped / "config.yaml").read_text())
    del tree["data"]["exif_orientation"], tree["data"]["nearest_color"]
    (stopped / "config.yaml").write_text(yaml.safe_dump(tree))
    for name in ("exif_orientation", "nearest_color"):
        edit_state(checkpoint_of(stopped), lambda state, name=name: state["config"]["data"].pop(name))
    settings = [*SHORT, f"data.root={own_spark_root}", f"output.save_path={stopped}"]
    kept = as_begun(load_config(overrides=settings), stopped / "config.yaml").config.data
    assert (kept.exif_orientation, kept.nearest_color) == ("upright", True)
    chosen = as_begun(load_config(overrides=[*settings, "data.nearest_color=false"]), stopped / "config.yaml")
    assert chosen.config.data.nearest_color is False, "what somebody has set stays, and is refused by name"
    for _ in range(2):  # the second start finds what the first stored
        message, record = resumed(own_spark_root, stopped)
        assert (message, record["status"]) == ("", "completed")
    assert yaml.safe_load((stopped / "config.yaml").read_text())["data"]["exif_orientation"] == "upright"


def test_conspicuous_labels_are_said_once_at_the_start(own_spark_root: Path, tmp_path: Path) -> None:
    assert leave("data", "check", "--root", str(own_spark_root), "--num-workers", "0") == 0
    manifest = json.loads((own_spark_root / "manifest.json").read_text())
    for image in manifest["splits"]["train"]["images"]:
        image["pixels"][2] = 0
    (own_spark_root / "manifest.json").write_text(json.dumps(manifest))
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(own_spark_root), str(path), (), None, STOPPED_AT)
    run_on_ranks(1, short_run, str(own_spark_root), str(path), (), "auto")
    finding = "training labels: classes without a single pixel: panels"
    assert (path / "log.txt").read_text().count(finding) == 1
