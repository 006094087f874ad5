from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.readers.spark import SPACECRAFT, SparkDataset, parse_box
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import ConfigError, DataError, UserError
from tests.conftest import NUM_TRAIN, SIDE


def test_reads_the_layout(spark_root: Path) -> None:
    dataset = SparkDataset(spark_root, "train")
    assert len(dataset) == NUM_TRAIN
    assert len({dataset.sample_id(i) for i in range(NUM_TRAIN)}) == NUM_TRAIN
    assert SPACECRAFT[dataset.category(9)] == "XMM Newton"
    assert dataset.files(9)[0].parent == spark_root / "images" / "XMM Newton" / "train"
    assert dataset.sample_id(9) == "XMM_Newton__image_00000"
    sample = dataset.load(9)
    assert sample.image.shape == (SIDE, SIDE, 3)
    assert set(np.unique(sample.mask)) <= {0, 1, 2}
    box = dataset.box(9)
    assert box is not None
    x_min, y_min, x_max, y_max = box
    ys, xs = np.nonzero(sample.mask)
    assert abs(int(xs.min()) - x_min) <= 1
    assert abs(int(ys.max()) - y_max) <= 1
    assert (x_max - x_min) > 0
    assert (y_max - y_min) > 0


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_dot_files_are_skipped(own_spark_root: Path) -> None:
    table = own_spark_root / "train.csv"
    first = table.read_text().splitlines()[1]
    table.write_text(table.read_text() + "._" + first + "\n")
    (own_spark_root / "images" / "Soho" / "train" / "._image_00000_img.jpg").write_bytes(b"x")
    assert len(SparkDataset(own_spark_root, "train")) == NUM_TRAIN


def test_row_without_its_file(own_spark_root: Path) -> None:
    (own_spark_root / "mask" / "Cheops" / "train" / "image_00000_layer.jpg").unlink()
    with pytest.raises(DataError) as error:
        SparkDataset(own_spark_root, "train")
    assert "train.csv:3: the row names" in str(error.value)
    assert "Cheops/train/image_00000_layer.jpg" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Cheops", "Sputnik", "train.csv:3: the class 'Sputnik' is not one of"),
        ("Bounding box", "Box", "train.csv:1: the columns Bounding box are missing"),
        ("image_00000_img.jpg", "../x_img.jpg", "must be file names without folders"),
        ("image_00000_img.jpg", "..", "must be file names without folders"),
        ("image_00000_img.jpg", ".", "must be file names without folders"),
        ('"(', '"[', "train.csv:2: the bounding box"),
        ("VenusExpress", "", "train.csv:2: image, mask or class is empty"),
    ],
)
def test_malformed_tables_name_file_and_row(own_spark_root: Path, old: str, new: str, message: str) -> None:
    edit(own_spark_root / "train.csv", old, new)
    with pytest.raises(DataError) as error:
        SparkDataset(own_spark_root, "train")
    assert message in str(error.value)


def test_missing_root_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data make-demo"):
        SparkDataset(tmp_path / "no", "train")


def test_missing_split_names_those_there(spark_root: Path) -> None:
    with pytest.raises(DataError, match="has train, val"):
        SparkDataset(spark_root, "dev")


def test_a_table_that_is_no_text(own_spark_root: Path) -> None:
    table = own_spark_root / "val.csv"
    table.write_bytes(table.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"val\.csv: this is not a text file"):
        SparkDataset(own_spark_root, "val")


def test_empty_split(own_spark_root: Path) -> None:
    table = own_spark_root / "val.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="no rows"):
        SparkDataset(own_spark_root, "val")


def test_unknown_dataset() -> None:
    with pytest.raises(ConfigError, match="did you mean spark"):
        open_dataset(DataConfig(dataset="sparc", root="x"), "train")


@given(st.tuples(*[st.integers(0, 1023)] * 4))
def test_boxes_read_back(box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        with pytest.raises(ValueError, match="ends before"):
            parse_box(str(box))
    else:
        assert parse_box(str(box)) == box
        assert parse_box(f" ({x0},{y0} ,{x1}, {y1}) ") == box


@given(st.text(max_size=30))
def test_any_text_is_a_box_or_an_error(text: str) -> None:
    try:
        box = parse_box(text)
    except ValueError as error:
        assert not isinstance(error, UserError)
    else:
        assert len(box) == 4
