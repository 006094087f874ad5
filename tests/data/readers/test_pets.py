from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError

TRIMAP = np.array([[1, 2, 3]], np.uint8)


def write(root: Path, names: list[str], table: str = "trainval") -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(root / "images" / f"{name}.jpg"), np.full((1, 3, 3), 77, np.uint8))
        cv2.imwrite(str(root / "annotations/trimaps" / f"{name}.png"), TRIMAP)
        # What macOS leaves beside a file in an archive.
        (root / "annotations/trimaps" / f"._{name}.png").write_bytes(b"\0\5\x16\7")
    (root / "annotations" / f"{table}.txt").write_text("#Image CLASS-ID SPECIES\n" + lines(names))


def lines(names: list[str]) -> str:
    return "".join(f"{name} 1 1 1\n" for name in names)


def open_split(root: Path, split: str, dataset: str = "pets") -> SegmentationDataset:
    return open_dataset(DataConfig(dataset=dataset, root=str(root)), split)


def test_labels_are_one_lower_and_the_border_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, ["Abyssinian_1"], "test")
    dataset = open_split(tmp_path, "test")
    np.testing.assert_array_equal(dataset.load(0).mask, [[0, 1, 2]])
    assert dataset.classes.names == ("pet", "background", "border")
    two = open_split(tmp_path, "test", "pets_without_border")
    np.testing.assert_array_equal(two.load(0).mask, [[0, 1, IGNORE_INDEX]])
    assert len(two.classes) == 2


def test_train_and_val_part_each_breed_of_trainval(tmp_path: Path) -> None:
    names = [f"{breed}_{number}" for number in range(10) for breed in ("great_pyrenees", "Sphynx")]
    write(tmp_path, names)
    parts = {split: open_split(tmp_path, split) for split in ("train", "val", "trainval")}
    ids = {split: [part.sample_id(i) for i in range(len(part))] for split, part in parts.items()}
    assert ids["trainval"] == names
    assert sorted(ids["train"] + ids["val"]) == sorted(names)
    assert sorted(ids["val"]) == ["Sphynx_4", "Sphynx_9", "great_pyrenees_4", "great_pyrenees_9"]


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("GIF", "P"), ("PNG", "RGBA"), ("PNG", "L"), ("JPEG", "L")])
def test_images_that_are_not_what_their_name_says(tmp_path: Path, kind: str, mode: str) -> None:
    write(tmp_path, ["Egyptian_Mau_139"], "test")
    picture = PIL.Image.new("RGB", (3, 1), (200, 200, 200)).convert(mode)
    picture.save(tmp_path / "images/Egyptian_Mau_139.jpg", format=kind)
    image = open_split(tmp_path, "test").load(0).image
    assert image.shape == (1, 3, 3)
    assert np.abs(image.astype(int) - 200).max() <= 4


def test_bad_input(tmp_path: Path) -> None:
    write(tmp_path, ["Abyssinian_1"], "test")
    with pytest.raises(DataError, match=r"trainval.txt: there is no such list"):
        open_split(tmp_path, "train")
    (tmp_path / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nAbyssinian_2\n")
    with pytest.raises(DataError, match=r"test.txt:2: expected 'name class-id species breed-id'"):
        open_split(tmp_path, "test")
    (tmp_path / "annotations/test.txt").write_text(lines(["Abyssinian_1", "Abyssinian_2"]))
    with pytest.raises(DataError, match=r"Abyssinian_2.jpg: the split names this image"):
        open_split(tmp_path, "test")
    (tmp_path / "images/Abyssinian_1.jpg").write_bytes(b"GIF89a not really")
    (tmp_path / "annotations/test.txt").write_text(lines(["Abyssinian_1"]))
    with pytest.raises(DataError, match="a GIF that cannot be decoded"):
        open_split(tmp_path, "test").load(0)
