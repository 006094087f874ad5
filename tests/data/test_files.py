from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from segformer_spark.data.files import visible_files
from segformer_spark.data.readers.ade20k import Ade20kDataset
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError


def test_links_are_followed(tmp_path: Path) -> None:
    for folder in ("scratch/deep", "images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "scratch" / "deep" / "1.png").touch()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "scratch")
    (tmp_path / "images" / "2.png").symlink_to(tmp_path / "scratch" / "deep" / "1.png")
    found = visible_files(tmp_path / "images", IMAGES, "images")
    assert [str(path.relative_to(tmp_path / "images")) for path in found] == ["2.png", "linked/deep/1.png"]


def test_a_link_to_a_folder_above_is_named(tmp_path: Path) -> None:
    (tmp_path / "images" / "x").mkdir(parents=True)
    (tmp_path / "images" / "x" / "back").symlink_to(tmp_path / "images")
    with pytest.raises(DataError, match="images/x/back: this link leads to a folder above it"):
        visible_files(tmp_path / "images", IMAGES, "images")


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.png", "2.PNG", "3.gif", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert len(visible_files(tmp_path, IMAGES, "images")) == 2
    assert "2 of 4 files are not used" in caplog.text
    assert "3.gif, notes.txt" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed: the folder cannot be read: Permission denied"):
        visible_files(tmp_path, IMAGES, "images")


def test_every_kind_of_image_of_ade20k_is_read(tmp_path: Path) -> None:
    names = ("a.jpg", "b.jpeg", "c.JPEG", "d.JPG", "e.bmp", "f.png")
    for folder in ("images/validation", "annotations/validation"):
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        (tmp_path / "images" / "validation" / name).touch()
        (tmp_path / "annotations" / "validation" / f"{Path(name).stem}.png").touch()
    dataset = Ade20kDataset(tmp_path, "validation")
    assert [dataset.files(index)[0].name for index in range(len(dataset))] == list(names)
