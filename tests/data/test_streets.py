"""The rendered StreetHazards set, read back by the reader of the real one."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest

from segformer_spark.cli import main
from segformer_spark.data.demo.streets import render_street, write_street_set
from segformer_spark.data.readers.street_hazards import ANOMALY_LABEL, StreetHazardsDataset
from segformer_spark.errors import DataError


def test_the_reader_reads_it(tmp_path: Path) -> None:
    write_street_set(tmp_path / "set", numbers=(5, 3, 4), size=(48, 80))
    sizes = {split: len(StreetHazardsDataset(tmp_path / "set", split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 5, "val": 3, "test": 4}
    for split in sizes:
        dataset = StreetHazardsDataset(tmp_path / "set", split)
        anomalous = [bool(dataset.anomalies(index).any()) for index in range(len(dataset))]
        assert anomalous == ([True, True, True, False] if split == "test" else [False] * len(dataset))
        sample = dataset.load(0)
        assert sample.image.shape == (48, 80, 3)
        assert len(np.unique(sample.mask)) > 5


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        write_street_set(tmp_path / name, numbers=(2, 1, 1), size=(48, 80), seed=seed)
    files = [str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*") if path.is_file()]
    assert len(files) == 2 * 4 + 3
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)[1:] == ([], [])
    assert len(filecmp.cmpfiles(tmp_path / "one", tmp_path / "other", files, shallow=False)[1]) == 8
    with pytest.raises(DataError, match="not empty"):
        write_street_set(tmp_path / "one", numbers=(1, 1, 1))


def test_strange_objects_are_where_the_labels_say() -> None:
    """Labelled pixels hold the striped object."""
    image, mask = render_street((96, 160), np.random.default_rng(4), anomalous=True)
    assert (mask == ANOMALY_LABEL).mean() > 0.002
    inside = image[mask == ANOMALY_LABEL].astype(float)
    assert inside.std(0).max() > 5, "striped"
    assert image.dtype == mask.dtype == np.uint8


def test_the_verb(tmp_path: Path) -> None:
    numbers = ["--num-train", "2", "--num-val", "1", "--num-test", "1", "--size", "45"]
    with pytest.raises(SystemExit) as ended:
        main(["data", "make-demo", "--dataset", "street_hazards", "--root", str(tmp_path / "set"), *numbers])
    assert ended.value.code == 0
    assert StreetHazardsDataset(tmp_path / "set", "train").load(0).mask.shape == (45, 80)
