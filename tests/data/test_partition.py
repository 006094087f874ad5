"""Halves and folds: every image in one part, and what belongs together together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.data_schema import CropConfig
from segformer_spark.config.load import load_config, run_name
from segformer_spark.config.schema import Config
from segformer_spark.data.cache import CachedDataset
from segformer_spark.data.class_weights import class_weights
from segformer_spark.data.dataset import SegmentationDataset, parent
from segformer_spark.data.manifest import read_manifest
from segformer_spark.data.partition import cut
from segformer_spark.data.registry import open_dataset, open_training_set
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.training.plan import resolve_loss
from tests.data.named_images import images
from tests.verbs import leave, run_verb


@pytest.mark.hypothesis
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(2, 6))
def test_categories_are_spread_over_all_parts(categories: list[int], number: int) -> None:
    dataset = images([f"x{i}" for i in range(len(categories))], tuple("abcd"), tuple(categories))
    if len(categories) < number:
        with pytest.raises(UserError, match=f"{len(categories)} images cannot be cut into {number} parts"):
            cut(dataset, number, None)
        return
    part, _ = cut(dataset, number, None)
    sizes = np.bincount(part, minlength=number)
    assert sizes.max() - sizes.min() <= 1
    for category in set(categories):
        own = np.bincount(part[np.array(categories) == category], minlength=number)
        assert own.max() - own.min() <= 1


@pytest.mark.hypothesis
@given(st.lists(st.integers(12, 40), min_size=1, max_size=3), st.integers(2, 6))
def test_a_drive_is_cut_into_stretches(lengths: list[int], number: int) -> None:
    names = [f"{'abc'[drive]}_{frame:03d}" for drive, length in enumerate(lengths) for frame in range(length)]
    part, _ = cut(images(names), number, None)
    for drive, length in enumerate(lengths):
        own = part[[name.startswith("abc"[drive]) for name in names]]
        assert (np.diff(own) >= 0).all(), "neighbours lie together"
        sizes = np.bincount(own, minlength=number)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == length


@pytest.mark.hypothesis
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.integers(2, 4))
def test_groups_stay_whole_and_parts_are_even(groups: list[int], number: int) -> None:
    names = [f"g{group}-{index}" for index, group in enumerate(groups)]
    sizes = Counter(groups)
    if len(sizes) < number:
        with pytest.raises(UserError, match="are of fewer groups"):
            cut(images(names), number, r"^(g\d)-")
        return
    part, _ = cut(images(names), number, r"^(g\d)-")
    for group in sizes:
        assert len(set(part[np.array(groups) == group].tolist())) == 1
    totals = np.bincount(part, minlength=number)
    assert totals.min() > 0
    assert totals.max() - totals.min() <= max(sizes.values()), "the largest goes first, where the fewest are"


FOLDS = 4


def of_fold(root: Path, fold: int, *more: str) -> Config:
    folds = (f"data.cross_validation.fold={fold}", f"data.cross_validation.num_folds={FOLDS}")
    return load_config(overrides=[f"data.root={root}", "data.image_size=64", *folds, *more]).config


def names_of(dataset: SegmentationDataset) -> list[str]:
    return [dataset.sample_id(index) for index in range(len(dataset))]


def test_folds_are_the_training_split_and_nothing_twice(spark_root: Path) -> None:
    whole = load_config(overrides=[f"data.root={spark_root}"]).config.data
    train, val = names_of(open_dataset(whole, "train")), names_of(open_dataset(whole, "val"))
    held_out = []
    for fold in range(FOLDS):
        config = of_fold(spark_root, fold)
        rest = names_of(open_training_set(config.data, CropConfig()))
        own = names_of(open_dataset(config.data, "val"))
        assert sorted(rest + own) == sorted(train)
        assert not {*rest} & {*own}
        held_out += own
        assert names_of(open_dataset(config.data.whole, "val")) == val, "the split on disk is still there"
        assert run_name(config).endswith(f"-fold{fold}")
        assert config.data.describe_split("val") == f"val (fold {fold} of {FOLDS} of train)"
    assert sorted(held_out) == sorted(train)


def test_a_fold_is_the_same_from_a_cache_and_class_weights_are_its_own(own_spark_root: Path) -> None:
    root = own_spark_root
    assert run_verb("data", "check", "--root", str(root)).returncode == 0
    assert run_verb("data", "cache", "--root", str(root), "--size", "64").returncode == 0
    config = of_fold(root, 1, "training.loss.class_weights=inverse")
    files = open_training_set(config.data, CropConfig())
    cached = open_training_set(config.data.model_copy(update={"cache": str(root / "cache")}), CropConfig())
    assert isinstance(parent(cached)[0], CachedDataset)
    assert names_of(cached) == names_of(files)
    manifest = read_manifest(config.data, "train")
    pixels_of = {root / one["image"]: one["pixels"] for one in manifest.images}
    pixels = [pixels_of[files.files(index)[0]] for index in range(len(files))]
    assert len(pixels) == len(files) == 9
    found = resolve_loss(config, files).class_weights
    assert found == class_weights("inverse", pixels)
    assert found != class_weights("inverse", [one["pixels"] for one in manifest.images])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("fold=5",), "fold 5 of 5: folds are numbered 0 to 4"),
        (("fold=0", "num_folds=1"), "greater than or equal to 2"),
        (("fold=0", "num_folds=13"), "12 images cannot be cut into 13 parts"),
        (("fold=0", "group_by=nothing"), "12 of 12 names have no match"),
    ],
)
def test_mistakes_are_named(spark_root: Path, settings: tuple[str, ...], message: str) -> None:
    overrides = [f"data.root={spark_root}", *(f"data.cross_validation.{one}" for one in settings)]
    with pytest.raises(UserError, match=message):
        open_dataset(load_config(overrides=overrides).config.data, "val")


def test_a_fold_needs_two_splits(spark_root: Path) -> None:
    with pytest.raises(ConfigError, match="train_split and val_split are both 'train'"):
        of_fold(spark_root, 0, "data.val_split=train")


def test_a_dry_run_says_which_fold(spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"data.root={spark_root}", "data.cross_validation.fold=0", "model.pretrained=none"]
    assert leave("train", "--dry-run", "--no-measure", *(part for one in given for part in ("--set", one))) == 0
    assert "images: 9 train (without fold 0 of 5 of train), 3 val (fold 0 of 5 of train)" in capsys.readouterr().out
