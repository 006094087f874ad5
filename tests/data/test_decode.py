from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segformer_spark.data.decode import check_sizes, nearest_color, read_color_mask, read_image, read_index_mask
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.errors import DataError

PALETTE = SPARK_CLASSES.colors


@given(
    hnp.arrays(np.uint8, (5, 7, 3)),
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6, unique=True),
)
def test_nearest_color_is_the_argmin_of_the_distance(pixels: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    ids, foreign = nearest_color(pixels, colors)
    distance = ((pixels[:, :, None].astype(np.int64) - np.array(colors)) ** 2).sum(-1)
    np.testing.assert_array_equal(ids, distance.argmin(-1))
    np.testing.assert_array_equal(foreign, distance.min(-1) > 200**2)


@pytest.mark.parametrize("quality", [75, 92, 100])
def test_jpeg_masks_lose_no_label(tmp_path: Path, quality: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((256, 256), np.uint8)
    for label in (1, 2, 1, 2):
        x, y = rng.integers(0, 200, 2)
        cv2.ellipse(truth, (int(x) + 30, int(y) + 30), (40, 17), float(rng.integers(0, 180)), 0, 360, label, -1)
    path = tmp_path / "mask.jpg"
    colors = np.asarray(PALETTE, np.uint8)[truth]
    cv2.imwrite(str(path), colors[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = read_color_mask(path, PALETTE)
    assert (decoded != truth).mean() < (0.001 if quality > 75 else 0.005)
    exact = (read_image(path) == colors).all(-1).mean()
    assert exact < 0.95, "JPEG no longer changes colours: this test shows nothing"


def test_images_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((2, 2, 3), (0, 0, 255), np.uint8))
    np.testing.assert_array_equal(read_image(path)[0, 0], (255, 0, 0))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files_are_errors(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=path.name):
        read_image(path)


def test_zero_tailed_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg"):
        read_image(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("color", [(0, 255, 0), (255, 255, 255), (255, 255, 0), (128, 128, 128)])
def test_foreign_colors_are_refused(tmp_path: Path, color: tuple[int, int, int]) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:16, :16] = color
    cv2.imwrite(str(tmp_path / "m.png"), pixels[:, :, ::-1])
    with pytest.raises(DataError) as error:
        read_color_mask(tmp_path / "m.png", PALETTE)
    assert "of the mask's coloured pixels resemble no class colour" in str(error.value)
    assert str(color) in str(error.value)


def test_a_small_foreign_object_is_refused_too(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[100:130, 200:230] = (0, 255, 0)  # 0.3 % of the image, all of its object
    cv2.imwrite(str(tmp_path / "m.jpg"), pixels[:, :, ::-1])
    with pytest.raises(DataError, match="resemble no class colour"):
        read_color_mask(tmp_path / "m.jpg", PALETTE)


def test_class_numbers_in_place_of_colors_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:30, 10:30], pixels[30:40, 10:30] = 1, 2
    cv2.imwrite(str(tmp_path / "m.png"), pixels)
    with pytest.raises(DataError, match="highest value is 2: it holds class numbers"):
        read_color_mask(tmp_path / "m.png", PALETTE)


def test_a_mask_without_an_object_is_background(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.jpg"), np.zeros((64, 64, 3), np.uint8))
    assert not read_color_mask(tmp_path / "m.jpg", PALETTE).any()


def test_sizes_must_agree() -> None:
    with pytest.raises(DataError, match="is 4x2, its mask m is 2x2"):
        check_sizes(np.zeros((2, 4, 3), np.uint8), np.zeros((2, 2), np.uint8), Path("i"), Path("m"))


@pytest.mark.parametrize(
    ("needed", "size"), [(52, (52, 68)), (27, (52, 68)), (26, (26, 34)), (14, (26, 34)), (13, (13, 17)), (1, (13, 17))]
)
def test_a_jpeg_is_decoded_no_smaller_than_needed(tmp_path: Path, needed: int, size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:104, :136]
    whole = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "i.jpg"), whole[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / "i.png"), whole[:, :, ::-1])
    reduced = read_image(tmp_path / "i.jpg", needed)
    assert reduced.shape == (*size, 3)
    averaged = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA)
    inner = (slice(1, -1), slice(1, -1))
    assert np.abs(reduced[inner].astype(int) - averaged[inner]).max() <= 6
    check_sizes(reduced, np.zeros((104, 136), np.uint8), Path("i"), Path("m"), reduced=True)
    assert np.array_equal(read_image(tmp_path / "i.png", needed), whole), "a PNG has no smaller versions in it"
    assert read_image(tmp_path / "i.jpg", 53).shape == whole.shape


def test_other_sizes_are_refused_for_reduced_images_too() -> None:
    for size in ((2, 4), (3, 2), (1, 1)):
        with pytest.raises(DataError, match="sizes must be equal"):
            check_sizes(np.zeros((2, 2, 3), np.uint8), np.zeros(size, np.uint8), Path("i"), Path("m"), reduced=True)
    with pytest.raises(DataError, match="sizes must be equal"):
        check_sizes(np.zeros((2, 2, 3), np.uint8), np.zeros((4, 4), np.uint8), Path("i"), Path("m"))


def test_files_that_no_decoder_takes(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "huge.png"
    path.write_bytes(png + struct.pack(">I", 0) + b"IEND\xaeB`\x82")
    with pytest.raises(DataError, match=r"huge\.png: this is not an image that can be decoded"):
        read_image(path)
    with pytest.raises(DataError, match=r"huge\.png: this is not an image that can be decoded"):
        read_index_mask(path, {0: 0})
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")


@pytest.mark.parametrize("label", [-1, 70000])
def test_labels_beyond_bytes_are_not_wrapped(tmp_path: Path, label: int) -> None:
    PIL.Image.fromarray(np.full((3, 3), label, np.int32)).save(tmp_path / "m.tiff")
    with pytest.raises(DataError, match=f"label {label} at x 0, y 0 is not in the class table"):
        read_index_mask(tmp_path / "m.tiff", {0: 0, 1: 1})
