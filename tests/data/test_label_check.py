from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.schema import DataConfig, FolderConfig
from segformer_spark.data.label_check import label_findings, split_findings
from segformer_spark.data.registry import open_dataset
from tests.data.readers.camvid_fixture import write_camvid
from tests.verbs import leave

NAMES = ("sky", "road", "car")


@pytest.mark.parametrize(
    ("pixels", "ignored", "expected"),
    [
        ([[5, 5, 0], [0, 1, 9]], [0, 0], []),
        ([[5, 5, 0], [0, 1, 0]], [0, 0], ["classes without a single pixel: car"]),
        ([[5, 5, 1], [0, 1, 0]], [6, 7], ["52.0% of all pixels are ignored: they neither train nor count"]),
        ([[5, 5, 1], [0, 1, 0]], [6, 6], []),
        ([[0, 4, 0], [0, 1, 0]], [0, 0], ["all labelled pixels are of one class, road"]),
        ([[0, 0, 0]], [4], ["100.0% of all pixels are ignored: they neither train nor count"]),
    ],
)
def test_findings(pixels: list[list[int]], ignored: list[int], expected: list[str]) -> None:
    found = label_findings(pixels, ignored, NAMES)
    assert found[: len(expected)] == expected
    of_part = label_findings(pixels, ignored, NAMES, whole=False)
    assert of_part == [finding for finding in found if "without a single" not in finding]


def write_folder(root: Path, split: str, value: int, number: int = 3) -> None:
    for kind, pixel in (("images", 90), ("masks", value)):
        (root / kind / split).mkdir(parents=True)
        for index in range(number):
            picture = np.zeros((32, 32), np.uint8)
            picture[18 + index :, 8:] = pixel
            cv2.imwrite(str(root / kind / split / f"{index}.png"), picture)


TABLE = "{masks: index, classes: [{name: other, color: [0, 0, 0]}, {name: leaf, color: [0, 255, 0]}]}"


def test_check_fails_for_masks_of_0_and_255(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """255 is the ignored label: no leaf is left to learn."""
    for split in ("train", "val"):
        write_folder(tmp_path, split, 255)
    arguments = ("data", "check", "--dataset", "folder", "--root", str(tmp_path), "--num-workers", "0")
    assert leave(*arguments, "--set", f"data.folder={TABLE}") == 1
    out = capsys.readouterr().out
    assert "train: all labelled pixels are of one class, other" in out
    assert "train: classes without a single pixel: leaf" in out
    assert "val: all labelled pixels are of one class, other" in out
    config = DataConfig(
        dataset="folder",
        root=str(tmp_path),
        folder=FolderConfig.model_validate(
            {"masks": "index", "classes": [{"name": "other", "color": [0, 0, 0]}, {"name": "leaf", "color": [0, 9, 0]}]}
        ),
    )
    dataset = open_dataset(config, "train")
    known = split_findings(config, "train", dataset)
    assert known == ["all labelled pixels are of one class, other", "classes without a single pixel: leaf"]
    (tmp_path / "manifest.json").unlink()
    assert split_findings(config, "train", dataset) == known, "without a manifest the masks are read"


def test_fixed_layouts_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subset of a known data set may lack classes."""
    write_camvid(tmp_path, num_train=2, num_val=1)
    for path in (tmp_path / "trainannot").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(mask == 8, 3, mask))
    arguments = ("--dataset", "camvid", "--root", str(tmp_path), "--num-workers", "0", "--splits", "train")
    assert leave("data", "check", *arguments) == 0
    out = capsys.readouterr().out
    assert "train: classes without a single pixel: car" in out
    assert "no problems found" in out
