"""Names of data sets in the configuration -> their readers. A new data set is one file and one line here."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from segformer_spark.config.image_size import Size, size_text
from segformer_spark.config.schema import CropConfig, DataConfig
from segformer_spark.data.dataset import SegmentationDataset
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
    """Open a split as its files lie on disk.

    Args:
        check_files: refuse a split of which files are missing; False leaves that to `load`.
        needed_size: decode JPEG images at 1/2, 1/4 or 1/8 of their size, as far as they stay this high and wide.

    Raises:
        ConfigError: no such data set.
        DataError: the data set at `root` is not as its reader expects.
    """
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
        dataset = CachedDataset(Path(config.cache), config, needed_size)
        if dataset.size is not None and crop.mode != "none":
            raise ConfigError(
                f"augmentation.crop.mode {crop.mode} cuts from native images, the cache holds "
                f"{size_text(dataset.size)} px; build it with --size native"
            )
    if crop.mode == "box" and dataset.box(0) is None and dataset.classes.background is None:
        raise ConfigError(
            f"augmentation.crop.mode box: {config.dataset} has neither labelled boxes nor a background class that "
            "objects stand out from"
        )
    return dataset
