"""Zips made elsewhere: every fault is named."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segformer_spark.config.load import load_config
from segformer_spark.data.registry import open_dataset
from segformer_spark.errors import DataError
from segformer_spark.submission.check import check_archive
from segformer_spark.submission.spark_format import (
    encode,
    list_images,
    read_prediction,
    submission_name,
    write_prediction,
)
from tests.conftest import SIDE
from tests.verbs import leave

Members = dict[str, bytes]


def npz(data: Any, key: str = "data", **more: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: data}, **more)
    return buffer.getvalue()


def valid() -> Any:
    return np.zeros((SIDE, SIDE, 3), np.bool_)


def zipped(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def images(spark_root: Path) -> list[Path]:
    return list_images(spark_root / "stream-1-test")


@pytest.fixture
def members(images: list[Path]) -> Members:
    return {submission_name(image): npz(valid()) for image in images}


def both() -> Any:
    data = valid()
    data[0, 0, 0] = data[0, 0, 2] = True
    return data


FIRST = "test_00000_layer.npz"
SPOILED: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "key": (lambda: npz(valid(), "mask"), r"holds \['mask'\], expected one array 'data'"),
    "more keys": (lambda: npz(valid(), extra=np.zeros(1)), "expected one array"),
    "dtype": (lambda: npz(valid().astype(np.uint8)), "dtype uint8, expected bool"),
    "shape": (lambda: npz(valid()[:-1]), rf"shape \({SIDE - 1}, {SIDE}, 3\), expected \({SIDE}, {SIDE}, 3\)"),
    "flat": (lambda: npz(valid()[..., 0]), "expected"),
    "middle": (lambda: npz(~valid()), "channel 1 is not empty"),
    "both": (lambda: npz(both()), "body and panels at once"),
    "pickle": (lambda: npz(np.array([{}], dtype=object)), "cannot be read"),
    "no npz": (lambda: b"no", "cannot be read"),
    "npy": (lambda: b"\x93NUMPY", "cannot be read"),
    "missing": (lambda: None, "missing"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_faults_of_a_member(members: Members, images: list[Path], tmp_path: Path, kind: str) -> None:
    make, message = SPOILED[kind]
    content = make()
    if content is None:
        del members[FIRST]
    else:
        members[FIRST] = content
    faults = check_archive(zipped(tmp_path / "a.zip", members), images)
    assert len(faults) == 1
    assert faults[0].startswith(f"{FIRST}: ")
    assert re.search(message, faults[0])


def test_faults_of_the_zip(members: Members, images: list[Path], tmp_path: Path) -> None:
    assert check_archive(zipped(tmp_path / "good.zip", members), images) == []
    assert check_archive(tmp_path / "good.zip", None) == []
    extra = zipped(
        tmp_path / "extra.zip", {**members, "other_layer.npz": npz(valid()), "in/x_layer.npz": b"", "d/": b""}
    )
    faults = check_archive(extra, images)
    assert any(fault.startswith("other_layer.npz: no such test image") for fault in faults)
    assert any(fault.startswith("in/x_layer.npz: lies in a folder") for fault in faults)
    assert any(fault.startswith("d/: the zip has to be flat") for fault in faults)
    with zipfile.ZipFile(tmp_path / "good.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(FIRST, npz(valid()))
    assert f"{FIRST}: is in the zip 2 times" in check_archive(tmp_path / "good.zip", images)
    encrypted = bytearray(zipped(tmp_path / "e.zip", members).read_bytes())
    # The flags of the first entry in the central directory, which comes after the members: npz files are zips, too.
    encrypted[encrypted.rindex(b"PK\x01\x02", 0, encrypted.rindex(FIRST.encode())) + 8] |= 1
    (tmp_path / "e.zip").write_bytes(encrypted)
    assert f"{FIRST}: is encrypted" in check_archive(tmp_path / "e.zip", images)
    (tmp_path / "text.zip").write_text("no")
    assert "this is no zip archive" in check_archive(tmp_path / "text.zip", images)[0]
    assert check_archive(zipped(tmp_path / "empty.zip", {}), None) == ["the zip is empty"]
    with pytest.raises(DataError, match="there is no such file"):
        check_archive(tmp_path / "none.zip", images)


def test_a_zip_is_scored_where_the_truth_is_given(
    spark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(load_config(overrides=[f"data.root={spark_root}"]).config.data, "val")
    folder = tmp_path / "npz"
    folder.mkdir()
    for index in range(len(dataset)):
        write_prediction(folder / f"{dataset.sample_id(index)}_layer.npz", dataset.load(index).mask)
    one = next(folder.iterdir())
    ids = read_prediction(one)
    assert np.array_equal(encode(ids), np.load(one)["data"])
    path = zipped(tmp_path / "all.zip", {one.name: one.read_bytes() for one in folder.iterdir()})
    given = ("--check", str(path), "--truth", str(spark_root), "--output", str(tmp_path / "scores"))
    assert leave("submit", *given) == 0
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["spark_score"] == 1.0
    assert leave("submit", "--check", str(path), "--images", str(spark_root / "stream-1-test")) == 1
    assert "wrong: " in capsys.readouterr().out
    assert leave("submit", "--truth", str(spark_root)) == 2


def test_previews_are_drawn(trained_run: Path, spark_root: Path, tmp_path: Path) -> None:
    images = str(spark_root / "stream-1-test")
    assert leave("submit", str(trained_run), "--images", images, "--output", str(tmp_path / "s"), "--preview", "2") == 0
    assert sorted(path.name for path in (tmp_path / "s" / "preview").iterdir()) == [
        *("test_00000_img.png", "test_00001_img.png")
    ]
