from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError

PUBLISHED = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip


def write(root: Path, kind: str, masks: dict[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        city = name.split("_")[0]
        image = root / "leftImg8bit/train" / city / f"{name}_leftImg8bit.png"
        label = root / "gtFine/train" / city / f"{name}_gtFine_{kind}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.zeros((*mask.shape, 3), np.uint8))
        cv2.imwrite(str(label), mask)


def open_train(root: Path) -> SegmentationDataset:
    return open_dataset(DataConfig(dataset="cityscapes", root=str(root)), "train")


ALL_IDS = np.array([[*range(34), 255]], np.uint8)


def test_label_ids_become_train_ids(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", {"ulm_000001_000019": ALL_IDS, "aachen_000000_000019": ALL_IDS})
    for path in ("leftImg8bit/train/ulm/._ulm_000001_000019_leftImg8bit.png", "gtFine/train/ulm/._x_labelIds.png"):
        (tmp_path / path).write_bytes(b"\x00\x05\x16\x07")  # AppleDouble
    dataset = open_train(tmp_path)
    assert [dataset.sample_id(i) for i in range(2)] == ["aachen_000000_000019", "ulm_000001_000019"]
    expected = [PUBLISHED.get(int(label), IGNORE_INDEX) for label in ALL_IDS[0]]
    np.testing.assert_array_equal(dataset.load(0).mask[0], expected)
    assert dataset.classes.names[0] == "road"
    assert dataset.classes.names[18] == "bicycle"


def test_train_ids_are_taken_where_there_are_no_label_ids(tmp_path: Path) -> None:
    write(tmp_path, "labelTrainIds", {"ulm_0_0": np.array([[0, 18, 255]], np.uint8)})
    np.testing.assert_array_equal(open_train(tmp_path).load(0).mask, [[0, 18, IGNORE_INDEX]])
    write(tmp_path, "labelTrainIds", {"ulm_0_0": np.array([[19]], np.uint8)})
    with pytest.raises(DataError, match="label 19 at x 0, y 0"):
        open_train(tmp_path).load(0)


def test_a_label_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", {"ulm_0_0": np.array([[34]], np.uint8)})
    with pytest.raises(DataError, match="label 34"):
        open_train(tmp_path).load(0)
