from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segformer_spark.errors import DataError, UserError
from segformer_spark.submission.spark_format import (
    check_prediction,
    encode,
    list_images,
    submission_name,
    validate_folder,
    write_prediction,
    write_zip,
)


@given(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 2)))
def test_encoding(ids: np.ndarray) -> None:
    data = encode(ids)
    assert data.dtype == np.bool_
    assert data.shape == (4, 5, 3)
    np.testing.assert_array_equal(data[..., 0], ids == 1)
    assert not data[..., 1].any()
    np.testing.assert_array_equal(data[..., 2], ids == 2)


@given(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 2)))
def test_a_written_prediction_is_valid_and_reads_back(
    tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("p") / "test_00000_layer.npz"
    write_prediction(path, ids)
    assert check_prediction(path, (4, 5)) is None
    with np.load(path) as archive:
        assert archive.files == ["data"]
        np.testing.assert_array_equal(archive["data"], encode(ids))


def folder(tmp_path: Path, number: int = 3) -> tuple[Path, list[Path]]:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    output.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        cv2.imwrite(str(images / f"test_{index:05d}_img.jpg"), np.zeros((6, 8, 3), np.uint8))
        write_prediction(output / f"test_{index:05d}_layer.npz", rng.integers(0, 3, (6, 8)).astype(np.uint8))
    (images / "._test_00000_img.jpg").write_bytes(b"x")
    (images / "notes.txt").write_text("x")
    return output, list_images(images)


def test_the_zip_is_flat_sorted_and_has_the_same_bytes(tmp_path: Path) -> None:
    output, images = folder(tmp_path)
    validate_folder(output, images)
    write_zip(output, images, tmp_path / "a.zip")
    for path in output.iterdir():
        path.touch()
    write_zip(output, list(reversed(images)), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"test_{i:05d}_layer.npz" for i in range(3)]
        assert archive.testzip() is None
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())


def broken(path: Path, kind: str) -> None:
    good = encode(np.ones((6, 8), np.uint8))
    if kind == "missing":
        path.unlink()
    elif kind == "extra":
        write_prediction(path.with_name("test_99999_layer.npz"), np.zeros((6, 8), np.uint8))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif kind == "key":
        np.savez_compressed(path, mask=good)
    elif kind == "two keys":
        np.savez_compressed(path, data=good, more=good)
    elif kind == "shape":
        np.savez_compressed(path, data=good[:5])
    elif kind == "dtype":
        np.savez_compressed(path, data=good.astype(np.uint8))
    elif kind == "channel":
        np.savez_compressed(path, data=good | np.array([False, True, False]))
    elif kind == "both":
        np.savez_compressed(path, data=good | np.array([False, False, True]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "test_00001_layer.npz: missing"),
        ("extra", "test_99999_layer.npz: no such test image"),
        ("cut", "cannot be read"),
        ("key", "expected one array 'data'"),
        ("two keys", "expected one array 'data'"),
        ("shape", "shape (5, 8, 3), expected (6, 8, 3)"),
        ("dtype", "dtype uint8, expected bool"),
        ("channel", "channel 1 is not empty"),
        ("both", "body and panels at once"),
    ],
)
def test_faults_are_found(tmp_path: Path, kind: str, message: str) -> None:
    output, images = folder(tmp_path)
    broken(output / "test_00001_layer.npz", kind)
    with pytest.raises(UserError) as error:
        validate_folder(output, images)
    assert message in str(error.value)
    assert "1 of 3 predictions are not valid" in str(error.value)


def test_names() -> None:
    assert submission_name(Path("x/test_00012_img.jpg")) == "test_00012_layer.npz"
    with pytest.raises(DataError, match=r"NAME_img\.jpg"):
        submission_name(Path("picture.jpg"))


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "no")
    with pytest.raises(DataError, match="there are no images"):
        list_images(tmp_path)
    for suffix in (".jpg", ".png"):
        cv2.imwrite(str(tmp_path / f"test_1_img{suffix}"), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="would both become"):
        list_images(tmp_path)


def test_other_kinds_of_images_are_taken_and_what_is_not_used_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a_img.jpg", "b_img.JPEG", "c_img.bmp", "more/d_img.jpg", "readme.txt", ".e_img.jpg"):
        (tmp_path / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert [image.name for image in list_images(tmp_path)] == ["a_img.jpg", "b_img.JPEG", "c_img.bmp"]
    assert "2 of 5 files are not used" in caplog.text
    assert "more/d_img.jpg, readme.txt" in caplog.text


def test_any_damaged_byte_is_a_fault_or_harmless(tmp_path: Path) -> None:
    """A flipped byte may hit the deflate stream, the zip's tables or the header: never a traceback."""
    path = tmp_path / "test_00000_layer.npz"
    write_prediction(path, np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint8))
    good, faults = path.read_bytes(), 0
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        faults += check_prediction(path, (16, 16)) is not None
    assert faults > 0.5 * len(good)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").replace(path)
    assert check_prediction(path, (16, 16)) is not None
