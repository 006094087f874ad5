from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.readers.street_hazards import StreetHazardsDataset, read_odgt
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError

PARTS = {"train": ("train", "training"), "val": ("train", "validation"), "test": ("test", "test")}
ALL = np.array([range(1, 14)], np.uint8)


def write(root: Path, split: str, towns: dict[str, list[int]], mask: np.ndarray = ALL) -> list[dict[str, str]]:
    part, folder = PARTS[split]
    entries = []
    for town, numbers in towns.items():
        for number in numbers:
            image, label = (f"{kind}/{folder}/{town}/{number}.png" for kind in ("images", "annotations"))
            for path, content in ((image, np.zeros((*mask.shape, 3), np.uint8)), (label, mask)):
                (root / part / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / part / path), content)
            entries.append({"fpath_img": image, "fpath_segm": label})
    return entries


def open_split(root: Path, split: str) -> SegmentationDataset:
    return open_dataset(DataConfig(dataset="street_hazards", root=str(root)), split)


def ids(dataset: SegmentationDataset) -> list[str]:
    return [dataset.sample_id(i) for i in range(len(dataset))]


def test_labels_are_one_lower_and_class_0_trains(tmp_path: Path) -> None:
    write(tmp_path, "train", {"t1-3": [1]})
    dataset = open_split(tmp_path, "train")
    np.testing.assert_array_equal(dataset.load(0).mask, [range(13)])
    names = dataset.classes.names
    assert (names[0], names[12], len(names)) == ("unlabeled", "traffic sign", 13)


@pytest.mark.parametrize("form", ["array", "lines"])
def test_lists_are_read_in_their_order_in_both_forms(tmp_path: Path, form: str) -> None:
    entries = write(tmp_path, "val", {"t5": [10, 2], "t6": [2]})
    text = json.dumps(entries) if form == "array" else "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "train/validation.odgt").write_text(text)
    (tmp_path / "train/train.odgt").write_text("[]")
    dataset = open_split(tmp_path, "val")
    assert ids(dataset) == ["t5__10", "t5__2", "t6__2"]
    assert dataset.categories == ("t5", "t6")
    assert [dataset.category(i) for i in range(3)] == [0, 0, 1]


def test_folders_are_read_where_there_is_no_list(tmp_path: Path) -> None:
    write(tmp_path, "train", {"t2": [3], "t1-3": [7]})
    write(tmp_path, "val", {"t5": [1]})
    for kind in ("images", "annotations"):  # AppleDouble, as archives packed on a Mac have it
        (tmp_path / f"train/{kind}/training/t2/._3.png").write_bytes(b"\x00\x05\x16\x07")
    assert ids(open_split(tmp_path, "train")) == ["t1-3__7", "t2__3"]
    assert ids(open_split(tmp_path, "val")) == ["t5__1"]


def test_anomalies_are_in_the_test_split_alone(tmp_path: Path) -> None:
    anomalous = np.array([[1, 14, 13]], np.uint8)
    for split in ("train", "test"):
        write(tmp_path, split, {"t5": [1]}, anomalous)
    test = open_split(tmp_path, "test")
    np.testing.assert_array_equal(test.load(0).mask, [[0, IGNORE_INDEX, 12]])
    assert isinstance(test, StreetHazardsDataset)
    np.testing.assert_array_equal(test.anomalies(0), [[False, True, False]])
    with pytest.raises(DataError, match="label 14 at x 1, y 0"):
        open_split(tmp_path, "train").load(0)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the splits train, val, test, not 'dev'"):
        open_split(tmp_path, "dev")
    entries = write(tmp_path, "test", {"t5": [1]})
    table = tmp_path / "test/test.odgt"
    for text, message in (
        ("{", "not a list of JSON objects"),
        ("[]", "expected JSON objects"),
        ("[1]", "expected JSON objects"),
        ('{"fpath_img": "x"}', "has no 'fpath_segm'"),
        (json.dumps([*entries, {"fpath_img": "a.png", "fpath_segm": "b.png"}]), r"a.png: the split names this image"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            open_split(tmp_path, "test")
    with pytest.raises(DataError, match="nothing.odgt: the file cannot be read"):
        read_odgt(tmp_path / "nothing.odgt")
