from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import load_config
from segformer_spark.data.dataset import IGNORE_INDEX, fixed_subset
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import EvalLoading, TrainLoader, check_labels, eval_loader, file_loader
from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.data.sampler import Position, TrainBatchSampler
from segformer_spark.errors import DataError
from tests.conftest import NUM_VAL, SIDE


def batches(root: Path, workers: int, world: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All training batches of epoch 1 over all ranks, images sorted by content."""
    config = load_config(overrides=["data.image_size=48", f"data.num_workers={workers}"]).config
    dataset = SparkDataset(root, "train")
    out = []
    for rank in range(world):
        sampler = TrainBatchSampler(len(dataset), BatchPlan(4 // world, 1, world), rank, 9)
        sampler.start_at(Position(1, 0))
        out += [(b.images, b.masks) for b in TrainLoader(dataset, config, sampler, pin=False)]
    return out


def test_batches_do_not_depend_on_workers(spark_root: Path) -> None:
    alone, helped = batches(spark_root, 0), batches(spark_root, 2)
    assert len(alone) == 3
    for (images, masks), (other_images, other_masks) in zip(alone, helped, strict=True):
        assert images.shape == (4, 3, 48, 48)
        assert images.dtype == masks.dtype == torch.uint8
        torch.testing.assert_close(images, other_images, rtol=0, atol=0)
        torch.testing.assert_close(masks, other_masks, rtol=0, atol=0)


def test_augmented_images_do_not_depend_on_ranks(spark_root: Path) -> None:
    def content(world: int) -> list[bytes]:
        return sorted(image.numpy().tobytes() for images, _ in batches(spark_root, 0, world) for image in images)

    assert content(1) == content(2)


def test_evaluation_keeps_the_native_mask(spark_root: Path) -> None:
    dataset = SparkDataset(spark_root, "val")
    loading = EvalLoading(InferenceView((32, 32)), 3, 0)
    items = [item for batch in eval_loader(dataset, range(len(dataset)), loading) for item in batch]
    assert [item.index for item in items] == list(range(NUM_VAL))
    assert items[0].pixels.shape == (3, 32, 32)
    assert items[0].size == (SIDE, SIDE)
    assert items[0].mask is not None
    np.testing.assert_array_equal(items[0].mask, dataset.load(0).mask)


def test_files_without_labels(spark_root: Path) -> None:
    files = sorted((spark_root / "stream-1-test").iterdir())
    (batch,) = file_loader(files, [1, 3], EvalLoading(InferenceView((32, 32)), 4, 0))
    assert [item.index for item in batch] == [1, 3]
    assert batch[0].mask is None


def test_labels_out_of_range_name_the_sample() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0, 0] = IGNORE_INDEX
    check_labels(mask, 3, "x")
    mask[1, 1] = 3
    with pytest.raises(DataError, match=r"x: the mask holds label 3, the data set has classes 0\.\.2"):
        check_labels(mask, 3, "x")


def test_fixed_subset(spark_root: Path) -> None:
    dataset = SparkDataset(spark_root, "train")
    first, again, other = (fixed_subset(dataset, 5, seed) for seed in (1, 1, 2))
    ids = [first.sample_id(i) for i in range(5)]
    assert len(first) == len(set(ids)) == 5
    assert ids == [again.sample_id(i) for i in range(5)]
    assert ids != [other.sample_id(i) for i in range(5)]
    np.testing.assert_array_equal(first.load(2).mask, again.load(2).mask)
    assert fixed_subset(dataset, None, 1) is dataset
