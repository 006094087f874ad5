from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.readers.voc import VOC_CLASSES
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError

PUBLISHED = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
INDICES = np.array([[0, 1, 15, 20, 255]], np.uint8)


def write(home: Path, split: str, names: list[str], indices: np.ndarray = INDICES) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        PIL.Image.new("RGB", indices.shape[::-1], (9, 9, 9)).save(home / "JPEGImages" / f"{name}.jpg")
        mask = PIL.Image.fromarray(indices).convert("P")
        # The palette repeats colours: only the indices tell.
        mask.putpalette([7, 7, 7] * 256)
        mask.save(home / "SegmentationClass" / f"{name}.png")
    (home / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def open_split(root: Path, split: str = "train") -> SegmentationDataset:
    return open_dataset(DataConfig(dataset="voc", root=str(root)), split)


@pytest.mark.parametrize("home", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_palette_indices_are_the_classes_in_the_lists_order(tmp_path: Path, home: str) -> None:
    write(tmp_path / home, "train", ["2007_000039", "2007_000032"])
    dataset = open_split(tmp_path)
    assert [dataset.sample_id(i) for i in range(2)] == ["2007_000039", "2007_000032"]
    with PIL.Image.open(dataset.files(0)[1]) as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(dataset.load(0).mask, [[0, 1, 15, 20, IGNORE_INDEX]])


def test_names_and_colors_are_the_devkits() -> None:
    assert len(VOC_CLASSES) == 21
    assert (VOC_CLASSES.names[1], VOC_CLASSES.names[20]) == ("aeroplane", "tvmonitor")
    assert {index: VOC_CLASSES.colors[index] for index in PUBLISHED} == PUBLISHED


def test_bad_input(tmp_path: Path) -> None:
    write(tmp_path, "val", ["a", "b"])
    with pytest.raises(DataError, match=r"train.txt: there is no such list of names"):
        open_split(tmp_path)
    (tmp_path / "SegmentationClass/b.png").unlink()
    with pytest.raises(DataError, match=r"b.jpg: its mask .*b.png does not exist"):
        open_split(tmp_path, "val")
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(DataError, match=r"a.jpg: the split names this image"):
        open_split(tmp_path, "val")
    write(tmp_path, "val", ["a"], np.array([[0, 21]], np.uint8))
    with pytest.raises(DataError, match=r"a.png: label 21 at x 1, y 0"):
        open_split(tmp_path, "val").load(0)
    write(tmp_path, "val", [])
    with pytest.raises(DataError, match="no names in this list"):
        open_split(tmp_path, "val")
