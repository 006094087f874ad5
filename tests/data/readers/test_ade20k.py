from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.readers.ade20k import ADE20K_CLASSES
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError


def labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 151, (12, 16)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for folder, number in (("training", 3), ("validation", 2)):
        short = {"training": "train", "validation": "val"}[folder]
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for index in range(number):
            name = f"ADE_{short}_{index:08d}"
            suffix = ".png" if index == 1 else ".jpg"
            cv2.imwrite(str(root / "images" / folder / f"{name}{suffix}"), np.zeros((12, 16, 3), np.uint8))
            cv2.imwrite(str(root / "annotations" / folder / f"{name}.png"), labels(index))
        (root / "images" / folder / f"._ADE_{short}_00000000.jpg").write_bytes(b"AppleDouble")
    return root


def open_split(root: Path, split: str) -> SegmentationDataset:
    return open_dataset(DataConfig(dataset="ade20k", root=str(root)), split)


def test_minus_one_and_zero_is_ignored(root: Path) -> None:
    dataset = open_split(root, "train")
    assert len(dataset) == 3
    assert len(open_split(root, "val")) == 2
    for index in range(3):
        stored = labels(index).astype(int)
        np.testing.assert_array_equal(dataset.load(index).mask, np.where(stored == 0, IGNORE_INDEX, stored - 1))
    assert dataset.files(1)[0].suffix == ".png"


def test_the_150_classes() -> None:
    names = ADE20K_CLASSES.names
    assert len(names) == len(set(names)) == len(set(ADE20K_CLASSES.colors)) == 150
    known = {0: "wall", 2: "sky", 12: "person", 20: "car", 76: "boat", 127: "bicycle", 149: "flag"}
    assert {index: names[index] for index in known} == known


def test_a_missing_mask_and_a_label_out_of_range(root: Path) -> None:
    bad = root / "annotations" / "training" / "ADE_train_00000000.png"
    cv2.imwrite(str(bad), np.full((12, 16), 151, np.uint8))
    with pytest.raises(DataError, match=rf"{bad.name}: label 151 at x 0, y 0"):
        open_split(root, "train").load(0)
    bad.unlink()
    with pytest.raises(DataError, match=rf"its mask .*{bad.name} does not exist"):
        open_split(root, "train")
    with pytest.raises(DataError, match="images/test: there is no such folder of images"):
        open_split(root, "test")
