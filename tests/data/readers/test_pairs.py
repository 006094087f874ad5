from __future__ import annotations

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.readers.pairs import former_id, relative_id
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from tests.data.readers.camvid_fixture import write_camvid

ROOT = Path("root")
NAMES = st.lists(st.text("_ %2a5F", min_size=1, max_size=6), min_size=1, max_size=3)


def named(parts: list[str]) -> Path:
    return ROOT.joinpath(*parts).with_name(parts[-1] + ".png")


@given(NAMES, NAMES)
def test_two_names_never_have_one_id(first: list[str], second: list[str]) -> None:
    one, other = relative_id(named(first), ROOT), relative_id(named(second), ROOT)
    assert (one == other) == (first == second)
    assert "/" not in one


@given(NAMES)
def test_the_id_of_before_follows_from_that_of_today(parts: list[str]) -> None:
    """Version 0.1 wrote two underscores for a slash, and one for a space."""
    of_0_1 = "__".join(parts).replace(" ", "_")
    if "%" not in of_0_1:
        assert former_id(relative_id(named(parts), ROOT)) == former_id(of_0_1) == of_0_1


def test_plain_names_are_their_own_ids() -> None:
    assert relative_id(ROOT / "town_1" / "0001TP_006690.png", ROOT) == "town_1__0001TP_006690"


def write(root: Path, kind: str, names: list[str]) -> None:
    folders = {"ade20k": ("images/training", "annotations/training"), "folder": ("images/train", "masks/train")}
    for folder in folders[kind]:
        for number, name in enumerate(names):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((4, 4), number + 1, np.uint8))


def opened(root: Path, kind: str) -> SegmentationDataset:
    return open_dataset(DataConfig(dataset=kind, root=str(root)), "train")


def test_equal_names_in_two_folders_have_masks_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "ade20k", ["x/1", "y/1"])
    dataset = opened(tmp_path, "ade20k")
    assert [dataset.sample_id(index) for index in range(2)] == ["x__1", "y__1"]
    assert [int(dataset.load(index).mask[0, 0]) for index in range(2)] == [0, 1]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "ade20k", ["1", "2"])
    cv2.imwrite(str(tmp_path / "images/training/1.jpg"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"1\.png and .*1\.jpg have one id, '1'"):
        opened(tmp_path, "ade20k")


def test_camvid_lists_of_several_folders(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "other")
    shutil.copytree(tmp_path / "valannot", tmp_path / "otherannot")
    lines = (tmp_path / "val.txt").read_text()
    (tmp_path / "val.txt").write_text(lines + lines.replace("val", "other"))
    dataset = open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "val")
    names = [dataset.sample_id(index) for index in range(6)]
    assert names[0] == "val__0016E5_07959"
    assert names[3] == "other__0016E5_07959"


def test_masks_without_an_image_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "ade20k", ["x/1", "y/1"])
    (tmp_path / "images/training/y/1.png").unlink()
    with caplog.at_level(logging.WARNING, "segformer_spark"):
        assert len(opened(tmp_path, "ade20k")) == 1
    assert "annotations/training: 1 of 2 files are not used, they are masks without an image: y/1.png" in caplog.text
