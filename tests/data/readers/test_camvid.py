from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.readers.camvid import CAMVID_CLASSES, CamVidDataset
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.scan import scan
from segformer_spark.errors import DataError
from tests.data.readers.camvid_fixture import HEIGHT, WIDTH, write_camvid

REAL = os.environ.get("CAMVID_ROOT")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_camvid(tmp_path / "camvid")
    return tmp_path / "camvid"


def test_absolute_lists_keep_their_tails(root: Path) -> None:
    dataset = open_dataset(DataConfig(dataset="camvid", root=str(root)), "train")
    assert len(dataset) == 6
    assert dataset.files(0) == (root / "train" / "0001TP_006690.png", root / "trainannot" / "0001TP_006690.png")
    assert dataset.sample_id(0) == "0001TP_006690"
    assert dataset.box(0) is None
    sample = dataset.load(0)
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    stored = cv2.imread(str(dataset.files(0)[1]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample.mask, np.where(stored == 11, IGNORE_INDEX, stored))
    assert (stored == 11).any()


def test_images_may_be_jpeg_whatever_the_list_says(tmp_path: Path) -> None:
    write_camvid(tmp_path, suffix=".jpg")
    assert CamVidDataset(tmp_path, "val").files(0)[0].suffix == ".jpg"


def test_label_out_of_range_names_file_label_and_place(root: Path) -> None:
    dataset = CamVidDataset(root, "val")
    path = dataset.files(1)[1]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    mask[3, 5] = 12
    cv2.imwrite(str(path), mask)
    with pytest.raises(DataError, match=rf"{path.name}: label 12 at x 5, y 3 is not in the class table"):
        dataset.load(1)


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"test\.txt: there is no such split of CamVid; .* has train, val"):
        CamVidDataset(root, "test")
    missing = root / "valannot" / "0016E5_07960.png"
    missing.unlink()
    with pytest.raises(DataError, match=r"val\.txt:2: the line names .*0016E5_07960\.png"):
        CamVidDataset(root, "val")
    assert len(CamVidDataset(root, "val", check_files=False)) == 3
    (root / "val.txt").write_text("only_one_path\n")
    with pytest.raises(DataError, match=r"val\.txt:1: expected two paths"):
        CamVidDataset(root, "val")


@pytest.mark.skipif(REAL is None, reason="CAMVID_ROOT is not set")
def test_real_images_have_the_published_shares() -> None:
    dataset = CamVidDataset(Path(str(REAL)), "train")
    assert (len(dataset), len(CamVidDataset(Path(str(REAL)), "val"))) == (367, 101)
    facts = list(scan(dataset, 0))
    assert not any(item.problems for item in facts)
    pixels = np.sum([item.pixels for item in facts], 0)
    ignored = sum(item.ignored for item in facts)
    shares = 100 * pixels / (pixels.sum() + ignored)
    published = [16.8, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.64, 0.29]
    np.testing.assert_allclose(shares, published, atol=0.06)
    assert 100 * ignored / (pixels.sum() + ignored) == pytest.approx(3.9, abs=0.06)
    assert CAMVID_CLASSES.names[int(shares.argmax())] == "road"
