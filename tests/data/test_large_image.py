"""Bands of libvips hold what the other decoders hold, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.decode import read_image
from segformer_spark.data.image_header import read_header
from segformer_spark.data.large_image import LargeImage, area_shares
from segformer_spark.data.resize import resize_image
from segformer_spark.errors import DataError
from tests.data.image_files import picture


def opened(path: Path) -> LargeImage:
    return LargeImage(path, read_header(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 85}),
        ("a.jpg", {"quality": 95, "subsampling": 0}),
        ("a.png", {}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.webp", {}),
    ],
)
def test_bands_are_the_image(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = tmp_path / name
    PIL.Image.fromarray(picture(301, 217)).save(path, **options)
    whole = read_image(path)
    np.testing.assert_array_equal(np.concatenate(list(opened(path).bands(64))), whole)
    for size in ((32, 32), (50, 217), (128, 77), (400, 300)):
        np.testing.assert_array_equal(opened(path).resized(size), resize_image(whole, size))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_other_samples_become_rgb_as_elsewhere(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "I;16":
        PIL.Image.fromarray((picture(40, 30)[..., 0].astype(np.uint16) << 8) + 77).save(path)
    else:
        PIL.Image.fromarray(picture(40, 30)).convert(mode).save(path)
    np.testing.assert_array_equal(np.concatenate(list(opened(path).bands(16))), read_image(path))


@given(st.integers(1, 200), st.data())
def test_every_row_counts_once(length: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, length))
    shares = area_shares(length, size)
    totals = np.zeros(size)
    for row in shares:
        for target, share in row:
            totals[target] += share
    np.testing.assert_allclose(totals, 1, atol=2e-3)  # OpenCV leaves out shares below a thousandth


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PIL.Image.fromarray(picture(301, 217)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=f"{name}: the file is truncated or damaged"):
        list(opened(path).bands())


def test_headers_are_read_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(picture()).save(path)
    assert read_header(path).size == (12, 19)
    (tmp_path / "b.png").touch()
    with pytest.raises(DataError, match=r"b.png: the file is empty"):
        read_header(tmp_path / "b.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path / "c.png")
