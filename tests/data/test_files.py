from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.files import on_disk, visible_files
from segformer_spark.data.identity import FileDigests
from segformer_spark.data.manifest import read_manifest
from segformer_spark.data.readers.ade20k import Ade20kDataset
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.suffixes import IMAGES
from segformer_spark.errors import DataError
from tests.verbs import leave


def test_links_are_followed(tmp_path: Path) -> None:
    for folder in ("scratch/deep", "images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "scratch" / "deep" / "1.png").touch()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "scratch")
    (tmp_path / "images" / "2.png").symlink_to(tmp_path / "scratch" / "deep" / "1.png")
    found = visible_files(tmp_path / "images", IMAGES, "images")
    assert [str(path.relative_to(tmp_path / "images")) for path in found] == ["2.png", "linked/deep/1.png"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_what_is_no_file_is_not_waited_for(own_spark_root: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As image, and as mask."""
    config = load_config(overrides=[f"data.root={own_spark_root}"]).config.data
    dataset = open_dataset(config, "train")
    said = {"pipe": "a pipe", "device": "a device", "folder": "a folder", "sparse": "bytes are too many"}[kind]
    for index, which in ((0, 0), (1, 1)):
        path = dataset.files(index)[which]
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        else:
            path.touch()
            os.truncate(path, 20 * 2**30)
        with pytest.raises(DataError, match=f"{path.name}.*{said}"):
            dataset.load(index)
    assert leave("data", "check", "--root", str(own_spark_root), "--num-workers", "0") == 1
    assert "2 problems" in capsys.readouterr().out


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


def test_names_in_composed_and_decomposed_form_are_one(tmp_path: Path) -> None:
    """macOS stores letters with accents in two characters, and so do archives made there."""
    decomposed, name = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFD", "NFC"))
    assert decomposed != name
    (tmp_path / decomposed).write_bytes(b"x")
    assert on_disk(tmp_path / name).read_bytes() == b"x"
    assert on_disk(tmp_path / "th\u00e9.png") == tmp_path / "th\u00e9.png"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (unicodedata.normalize("NFC", "\u00e9t\u00e9"), unicodedata.normalize("NFD", "\u00e9t\u00e9")),
        ("b\udce9b\udce9", "b\udce9b\udce9"),  # Latin-1, as old archives have it
    ],
)
@pytest.mark.parametrize("kind", ["folder", "ade20k"])
def test_names_that_are_not_composed_utf_8(
    tmp_path: Path, image: str, mask: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"folder": ("images/train", "masks/train"), "ade20k": ("images/training", "annotations/training")}[kind]
    root = tmp_path / "set"
    for folder, name, value in zip(folders, (image, mask), (90, 1), strict=True):
        (root / folder).mkdir(parents=True)
        pixels = np.full((8, 8), value, np.uint8)
        pixels[0] = 0 if kind == "folder" else 2
        (root / folder / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    table = "{masks: index, classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [9, 9, 9]}]}"
    given = ("--dataset", kind, "--root", str(root), "--splits", "train", "--num-workers", "0")
    own = ("--set", f"data.folder={table}") if kind == "folder" else ()
    assert leave("data", "check", *given, *own) == 0, capsys.readouterr()
    config = load_config(overrides=[f"data.dataset={kind}", f"data.root={root}", *own[1:]]).config.data
    dataset = open_dataset(config, "train")
    assert dataset.load(0).mask.shape == (8, 8)
    assert dataset.sample_id(0).encode("utf-8"), "safe in tables"
    assert FileDigests(root).of_split(dataset) == read_manifest(config, "train").digest
