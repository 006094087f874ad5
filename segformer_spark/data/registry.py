"""Names of data sets in the configuration -> their readers. A new data set is one file and one line here."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

import numpy as np

from segformer_spark.config.data_schema import CropConfig, CrossValidationConfig, DataConfig
from segformer_spark.config.image_size import Size, size_text
from segformer_spark.data.dataset import SegmentationDataset, Subset
from segformer_spark.data.partition import cut
from segformer_spark.errors import ConfigError

DATASETS: dict[str, str] = {
    "spark": "segformer_spark.data.readers.spark:SparkDataset",
    "camvid": "segformer_spark.data.readers.camvid:CamVidDataset",
    "ade20k": "segformer_spark.data.readers.ade20k:Ade20kDataset",
    "cityscapes": "segformer_spark.data.readers.cityscapes:CityscapesDataset",
    "voc": "segformer_spark.data.readers.voc:VocDataset",
    "pets": "segformer_spark.data.readers.pets:PetsDataset",
    "pets_without_border": "segformer_spark.data.readers.pets:PetsWithoutBorder",
    "street_hazards": "segformer_spark.data.readers.street_hazards:StreetHazardsDataset",
    "folder": "segformer_spark.data.readers.folder:FolderDataset",
}


def open_dataset(
    config: DataConfig, split: str, *, check_files: bool = True, needed_size: Size | None = None
) -> SegmentationDataset:
    """Open a split of files; with a fold configured, the training split without it, and it as the validation split.

    Args:
        check_files: refuse a split of which files are missing; False leaves that to `load`.
        needed_size: decode JPEG images at 1/2, 1/4 or 1/8 of their size, as far as they stay this high and wide.

    Raises:
        ConfigError: no such data set.
        UserError: the data set at `root` is not as its reader expects, or cannot be cut into the folds.
    """
    fold = config.cross_validation
    if fold.fold is not None and split in (config.train_split, config.val_split):
        whole = _open_whole(config, config.train_split, check_files=check_files, needed_size=needed_size)
        return part_of_fold(whole, fold, held_out=split == config.val_split)
    return _open_whole(config, split, check_files=check_files, needed_size=needed_size)


def part_of_fold(dataset: SegmentationDataset, fold: CrossValidationConfig, *, held_out: bool) -> SegmentationDataset:
    """What a fold holds out of a training split, or what it leaves for training.

    Raises:
        UserError: the split cannot be cut into so many folds.
    """
    part, _ = cut(dataset, fold.num_folds, fold.group_by)
    return Subset(dataset, np.flatnonzero((part == fold.fold) == held_out).tolist())


def _open_whole(config: DataConfig, split: str, *, check_files: bool, needed_size: Size | None) -> SegmentationDataset:
    name = config.dataset
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(DATASETS)}"
        raise ConfigError(f"data.dataset: there is no reader {name!r}; {hint}")
    module, _, attribute = DATASETS[name].partition(":")
    reader = getattr(importlib.import_module(module), attribute)
    dataset: SegmentationDataset = reader.open(config, split, check_files=check_files, needed_size=needed_size)
    return dataset


def open_training_set(config: DataConfig, crop: CropConfig) -> SegmentationDataset:
    """The training split, from `data.cache` where one is given.

    Raises:
        UserError: as `open_dataset`, a cache that does not go with the configuration, or one of these with the crops.
    """
    from segformer_spark.data.cache import CachedDataset

    if config.reduced_decode and crop.mode != "none":
        raise ConfigError(f"data.reduced_decode goes with whole images, augmentation.crop.mode is {crop.mode}")
    needed_size = config.input_size if config.reduced_decode else None
    if config.cache is None:
        dataset = open_dataset(config, config.train_split, needed_size=needed_size)
    else:
        cached = CachedDataset(Path(config.cache), config, needed_size)
        if cached.size is not None and crop.mode != "none":
            raise ConfigError(
                f"augmentation.crop.mode {crop.mode} cuts from native images, the cache holds "
                f"{size_text(cached.size)} px; build it with --size native"
            )
        fold = config.cross_validation
        dataset = cached if fold.fold is None else part_of_fold(cached, fold, held_out=False)
    if crop.mode == "box" and dataset.box(0) is None and dataset.classes.background is None:
        raise ConfigError(
            f"augmentation.crop.mode box: {config.dataset} has neither labelled boxes nor a background class that "
            "objects stand out from"
        )
    return dataset
