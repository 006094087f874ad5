"""Names of data sets in the configuration -> their readers. A new data set is one file and one line here."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.errors import ConfigError

DATASETS: dict[str, str] = {
    "spark": "segformer_spark.data.spark:SparkDataset",
}


def open_dataset(name: str, root: Path | str, split: str) -> SegmentationDataset:
    """Open a split.

    Raises:
        ConfigError: no such data set.
        DataError: the data set at `root` is not as its reader expects.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(DATASETS)}"
        raise ConfigError(f"data.dataset: there is no reader {name!r}; {hint}")
    module, _, attribute = DATASETS[name].partition(":")
    dataset: SegmentationDataset = getattr(importlib.import_module(module), attribute)(Path(root), split)
    return dataset
