from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.scan import OCCUPANCY_SIDE, find_duplicates, inspect, scan


def problems(root: Path, split: str = "train") -> list[str]:
    dataset = SparkDataset(root, split, check_files=False)
    return [problem for item in scan(dataset, 0) for problem in item.problems]


def test_facts_of_a_healthy_item(spark_root: Path) -> None:
    dataset: SegmentationDataset = SparkDataset(spark_root, "train")
    facts, sample = inspect(dataset, 3, occupancy=True), dataset.load(3)
    assert facts.problems == []
    assert facts.size == sample.mask.shape
    assert facts.pixels == [int((sample.mask == c).sum()) for c in range(3)]
    assert facts.brightness == pytest.approx(float(sample.image.mean()))
    rows, columns = np.nonzero(sample.mask)
    assert facts.box == (columns.min(), rows.min(), columns.max(), rows.max())
    assert facts.image_state[0] == dataset.files(3)[0].stat().st_size
    for index, occupancy in facts.occupancy.items():
        assert occupancy.shape == (OCCUPANCY_SIDE, OCCUPANCY_SIDE)
        assert occupancy.mean() == pytest.approx((sample.mask == index).mean(), abs=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_items_come_once_and_in_order(spark_root: Path, num_workers: int) -> None:
    dataset = SparkDataset(spark_root, "train")
    assert [item.image for item in scan(dataset, num_workers)] == [dataset.files(i)[0] for i in range(len(dataset))]


def test_every_kind_of_damage_is_named_by_its_path(own_spark_root: Path) -> None:
    dataset = SparkDataset(own_spark_root, "train")
    image, mask = zip(*(dataset.files(index) for index in range(6)), strict=True)
    size = cv2.imread(str(mask[1])).shape[:2]
    image[0].write_bytes(image[0].read_bytes()[:500])
    cv2.imwrite(str(mask[1]), np.zeros((*size, 3), np.uint8))
    cv2.imwrite(str(mask[2]), np.full((*size, 3), (0, 255, 0), np.uint8))
    cv2.imwrite(str(image[3]), np.zeros((10, 10, 3), np.uint8))
    mask[4].unlink()
    image[5].write_bytes(b"")
    found = problems(own_spark_root)
    expected = [
        (image[0], "truncated"),
        (mask[1], "the mask is empty, it holds nothing but background"),
        (mask[2], "resemble no class colour"),
        (image[3], "sizes must be equal"),
        (mask[4], "No such file"),
        (image[5], "the file is empty"),
    ]
    assert len(found) == len(expected)
    for line, (path, words) in zip(found, expected, strict=True):
        assert line.startswith(str(path))
        assert words in line


def test_what_is_left_out_of_an_image_is_noted(own_spark_root: Path) -> None:
    dataset = SparkDataset(own_spark_root, "train")
    images = [dataset.files(index)[0] for index in range(4)]
    pixels = cv2.imread(str(images[0]))
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    rgba[0, 0, 3] = 7
    images[0].write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    wide = cv2.imread(str(images[1])).astype(np.uint16)
    images[1].write_bytes(cv2.imencode(".png", wide * 257)[1].tobytes())
    images[2].write_bytes(cv2.imencode(".png", cv2.imread(str(images[2])).astype(np.uint16) * 16)[1].tobytes())
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("XYZ")).tobytes()
    PIL.Image.open(images[3]).save(images[3], "JPEG", icc_profile=profile, quality=95)
    turned, upright = PIL.Image.Exif(), PIL.Image.open(dataset.files(4)[0])
    turned[274] = 6
    upright.save(dataset.files(4)[0], "JPEG", exif=turned, quality=95)
    found = [inspect(dataset, index) for index in range(5)]
    assert found[4].notes == ["have EXIF orientation 6"], "counted, although the mask has no tag and it is refused"
    assert "Set data.exif_orientation" in found[4].problems[0]
    assert found[0].notes == ["have an alpha channel, which is left out"]
    assert found[1].notes == ["have 16 bits a sample, of which the upper 8 are read"]
    assert found[1].problems == []
    assert "only the lowest are used, so that the image is read as nearly black" in found[2].problems[0]
    assert found[3].notes[0].startswith("have the colour profile XYZ")


def test_duplicates_within_and_across_splits(own_spark_root: Path) -> None:
    train, val = SparkDataset(own_spark_root, "train"), SparkDataset(own_spark_root, "val")
    shutil.copy(train.files(0)[0], train.files(1)[0])
    shutil.copy(train.files(2)[0], val.files(0)[0])
    facts = {"train": list(scan(train, 0)), "val": list(scan(val, 0))}
    assert find_duplicates(facts) == [
        f"{train.files(1)[0]} (train): the same bytes as {train.files(0)[0]} (train)",
        f"{val.files(0)[0]} (val): the same bytes as {train.files(2)[0]} (train)",
    ]


def test_boxes_that_do_not_fit_are_named(own_spark_root: Path) -> None:
    table = own_spark_root / "train.csv"
    header, first, second, *rows = table.read_text().splitlines()
    first = re.sub(r'"\(.*\)"', '"(0, 0, 3, 3)"', first)
    second = re.sub(r'"\(.*\)"', '"(40, 40, 120, 90)"', second)
    table.write_text("\n".join([header, first, second, *rows]) + "\n")
    found = problems(own_spark_root)
    assert len(found) == 1, "that the labels disagree is no fault of the file"
    assert "the labelled box (40, 40, 120, 90) reaches out of the image, which is 96x96" in found[0]
    train = SparkDataset(own_spark_root, "train")
    others = [item.other_box for item in scan(train, 0) if item.other_box]
    assert len(others) == 2
    assert "labelled box (0, 0, 3, 3), object in the mask" in others[0]
