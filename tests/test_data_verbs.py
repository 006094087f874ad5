"""The verbs that prepare data, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.cli import main
from segformer_spark.data.readers.spark import SparkDataset
from tests.verbs import leave


def test_check_writes_the_manifest_and_ends_with_0(own_spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("data", "check", "--root", str(own_spark_root), "--num-workers", "2") == 0
    out = capsys.readouterr().out
    assert "train: 12 images, 12 readable: background" in out
    assert "no problems found" in out
    manifest = json.loads((own_spark_root / "manifest.json").read_text())
    assert {name: split["num_images"] for name, split in manifest["splits"].items()} == {"train": 12, "val": 7}
    assert manifest["classes"] == ["background", "body", "panels"]


def test_check_names_what_is_wrong_and_ends_with_1(own_spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = SparkDataset(own_spark_root, "train")
    image, mask = dataset.files(0)[0], dataset.files(1)[1]
    image.unlink()
    cv2.imwrite(str(mask), np.zeros((96, 96, 3), np.uint8))
    arguments = ("data", "check", "--root", str(own_spark_root), "--num-workers", "0", "--splits", "train")
    assert leave(*arguments) == 1
    out = capsys.readouterr().out
    assert f"{image}: the file cannot be read: No such file or directory" in out
    assert f"{mask}: the mask is empty" in out
    assert "2 problems" in out
    assert leave(*arguments, "--show", "1") == 1
    assert "and 1 more; --show 2 prints all" in capsys.readouterr().out


def test_stats_preview_and_cache(own_spark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ("--root", str(own_spark_root), "--num-workers", "0")
    assert leave("data", "stats", *root, "--output", str(tmp_path / "stats")) == 0
    assert json.loads((tmp_path / "stats" / "stats.json").read_text())["num_images"] == 12
    assert leave("data", "preview", *root, "--out", str(tmp_path / "sheet.png"), "--num-images", "3") == 0
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    cache = ("data", "cache", *root, "--output", str(tmp_path / "cache"), "--size", "64", "--verify")
    assert leave(*cache) == 2, "there is no manifest yet"
    assert "make it with: segformer-spark data check --dataset spark" in capsys.readouterr().err
    assert leave("data", "check", *root) == 0
    assert leave(*cache) == 0
    out = capsys.readouterr().out
    assert "verified" in out
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("spark-train-64-raw-")
    assert f"--set data.cache={folder}" in out


def test_changed_files_are_not_taken_for_good(own_spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit after the manifest was made is named, and the manifest stays until it is said."""
    arguments = ("data", "check", "--root", str(own_spark_root), "--num-workers", "0")
    assert leave(*arguments) == 0
    manifest = own_spark_root / "manifest.json"
    before = manifest.read_bytes()
    assert leave(*arguments) == 0
    dataset = SparkDataset(own_spark_root, "train")
    (image, _), (gone, gone_mask) = dataset.files(0), dataset.files(1)
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    table = own_spark_root / "train.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:2], *lines[3:]]))
    capsys.readouterr()
    assert leave(*arguments) == 1
    said = capsys.readouterr().out
    for path, what in ((image, "has other contents"), (gone, "is gone"), (gone_mask, "is gone")):
        assert f"{path.relative_to(own_spark_root)}: {what} since {manifest}" in said
    assert "3 files are not those of the manifest, which stays as it is; --accept-changes" in said
    assert manifest.read_bytes() == before
    assert leave(*arguments, "--accept-changes") == 0
    assert manifest.read_bytes() != before
    assert leave(*arguments) == 0


def test_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "cache", "--output", "x", "--size", "-3"])
    assert "--size" in capsys.readouterr().err


def test_a_manifest_that_cannot_be_written_is_said_before_reading(
    own_spark_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert leave("data", "check", "--root", str(own_spark_root)) == 2
    assert "put it elsewhere with --set data.manifest=FILE" in capsys.readouterr().err
