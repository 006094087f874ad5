from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.png import PngWriter, read_text_chunk, write_png
from tests.data.image_files import ORIENTATION


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 7), st.integers(0, 99))
def test_other_decoders_read_the_same_pixels(height: int, width: int, bands: int, band: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    pixels = pixels[..., 0] if bands == 1 else pixels
    stream = io.BytesIO()
    with PngWriter(stream, (height, width), bands) as png:
        for top in range(0, height, band):
            png.write(pixels[top : top + band])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(stream.getvalue()))), pixels)
    decoded = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded if bands == 1 else decoded[..., ::-1], pixels)


def test_palette_orientation_and_text(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 1]], np.uint8)
    path = tmp_path / "a.png"
    write_png(path, ids, palette=[(0, 0, 0), (9, 8, 7), (255, 0, 1)], orientation=6, text={"who": "übrigens"})
    with PIL.Image.open(path) as picture:
        assert picture.mode == "P"
        assert picture.getexif()[ORIENTATION] == 6
        assert picture.text["who"] == "übrigens"  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(picture), ids)
        assert picture.convert("RGB").getpixel((0, 1)) == (255, 0, 1)
    assert read_text_chunk(path, "who") == "übrigens"
    assert read_text_chunk(path, "what") is None


def test_the_same_pixels_are_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (700, 31), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels)
    write_png(tmp_path / "b.png", pixels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_missing_rows_are_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1 rows are missing"), PngWriter(io.BytesIO(), (2, 3)) as png:
        png.write(np.zeros((1, 3), np.uint8))


def test_a_file_of_another_kind_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\xff\xd8")
    assert read_text_chunk(tmp_path / "a.png", "who") is None
