"""Lists and tables in the encodings that editors write, and images that are listed twice or share an id."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from segformer_spark.config.schema import DataConfig
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.files import read_text
from segformer_spark.data.readers.spark import read_boxes
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from tests.data.readers.camvid_fixture import write_camvid

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1"]
Open = Callable[[], SegmentationDataset]


@pytest.fixture(params=["spark", "camvid"])
def listed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Open]:
    """A list, and how its data set is opened."""
    if request.param == "spark":
        root, table = request.getfixturevalue("own_spark_root"), "val.csv"
    else:
        root, table = tmp_path / "camvid", "val.txt"
        write_camvid(root)
    return root / table, lambda: open_dataset(DataConfig(dataset=request.param, root=str(root)), "val")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_common_encoding(listed: tuple[Path, Open], encoding: str) -> None:
    table, read = listed
    before = [read().files(index) for index in range(len(read()))]
    table.write_bytes(table.read_text(encoding="utf-8").encode(encoding))
    assert [read().files(index) for index in range(len(read()))] == before


def test_latin_1_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x").write_bytes("straße\n".encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert read_text(tmp_path / "x") == "straße\n"
    assert "it is read as Latin-1" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\0b", "not a text file"), (b"\xff\xfea", "not text in UTF-16"), (None, "cannot be read")],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"list\.txt.*{message}"):
        read_text(path)


def test_a_line_that_is_there_twice_is_refused(listed: tuple[Path, Open]) -> None:
    table, read = listed
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(DataError, match=r"is in the split twice\. Remove one"):
        read()


def test_two_images_with_one_mask_are_refused(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    lines = (tmp_path / "val.txt").read_text().splitlines()
    first, mask = (Path(*Path(part).parts[-2:]) for part in lines[0].split())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / first.name).write_bytes((tmp_path / first).read_bytes())
    (tmp_path / "val.txt").write_text("\n".join([*lines, f"other/{first.name} {mask}"]) + "\n")
    with pytest.raises(DataError, match=rf"have one mask, .*{mask.name}"):
        open_dataset(DataConfig(dataset="camvid", root=str(tmp_path)), "val")


def test_two_boxes_of_one_image_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    rows = ["Image name,Bounding box", 'a.jpg,"(1, 1, 5, 5)"', 'b.jpg,"(1, 1, 5, 5)"', 'a.jpg,"(2, 2, 6, 6)"']
    table.write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"boxes\.csv:4: there is a box of a\.jpg in an earlier line"):
        read_boxes(table)
