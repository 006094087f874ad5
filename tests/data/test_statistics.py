from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.preview import write_sheet
from segformer_spark.data.readers.camvid import CamVidDataset
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.scan import scan
from segformer_spark.data.statistics import draw_statistics, object_share, occupancy_maps, summarize_split
from segformer_spark.errors import DataError
from tests.data.readers.camvid_fixture import write_camvid


def test_shares_sizes_and_places(spark_root: Path) -> None:
    dataset = SparkDataset(spark_root, "train")
    facts = list(scan(dataset, 0, occupancy=True))
    summary = summarize_split(facts, dataset.classes)
    masks = np.stack([dataset.load(i).mask for i in range(len(dataset))])
    for index, name in enumerate(dataset.classes.names):
        assert summary["classes"][name]["share"] == pytest.approx(float((masks == index).mean()))
        assert summary["classes"][name]["images_with"] == int((masks == index).any((1, 2)).sum())
    assert sum(one["share"] for one in summary["classes"].values()) == pytest.approx(1)
    assert summary["num_images"] == len(dataset)
    x0, y0, x1, y1 = facts[0].box or (0, 0, 0, 0)
    assert object_share(facts[0], dataset.classes) == pytest.approx((x1 - x0 + 1) * (y1 - y0 + 1) / masks[0].size)
    maps = occupancy_maps(facts, 3)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(maps.mean((1, 2)), [(masks == c).mean() for c in range(3)], atol=1e-5)


def test_figures_with_and_without_background(spark_root: Path, tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid")
    for _name, dataset in {
        "spark": SparkDataset(spark_root, "val"),
        "camvid": CamVidDataset(tmp_path / "camvid", "train"),
    }.items():
        facts = list(scan(dataset, 0, occupancy=True))
        summary = summarize_split(facts, dataset.classes)
        for path in draw_statistics(facts, dataset.classes, summary, tmp_path / type(dataset).__name__):
            picture = cv2.imread(str(path))
            assert picture is not None
            assert picture.std() > 10
    assert summary["object_box_share"] is None
    assert summary["ignored_share"] > 0


def test_nothing_readable(spark_root: Path) -> None:
    with pytest.raises(DataError, match="no image of the split can be read"):
        summarize_split([], SparkDataset(spark_root, "val").classes)


def test_the_sheet_shows_what_is_fed(spark_root: Path, tmp_path: Path) -> None:
    dataset = SparkDataset(spark_root, "train")
    overrides = ["data.image_size=224", "augmentation.affine=0.0", "augmentation.color=0.0", "augmentation.blur=0.0"]
    config = load_config(overrides=[*overrides, f"data.root={spark_root}"]).config
    write_sheet(dataset, config, tmp_path / "a.png", num_images=4)
    write_sheet(dataset, config, tmp_path / "b.png", num_images=4, epoch=1)
    first, second = (cv2.imread(str(tmp_path / name)) for name in ("a.png", "b.png"))
    assert first.shape[1] > 3 * 448
    assert (first != second).any(), "another epoch has other augmentation"
    from segformer_spark.data.loader import fed_sample
    from segformer_spark.data.sampler import epoch_order
    from segformer_spark.data.transforms import TrainTransform

    index = int(epoch_order(len(dataset), config.experiment.seed, 0)[0])
    transform = TrainTransform((224, 224), config.augmentation, config.experiment.seed)
    sample = fed_sample(dataset, transform, 0, index)
    top = first.shape[0] - 2 * (224 + 18 + 6) + 18
    np.testing.assert_array_equal(first[top : top + 224, :224, ::-1], sample.image)
