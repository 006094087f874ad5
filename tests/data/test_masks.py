from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segformer_spark.data.dataset import IGNORE_INDEX, Color, Mask
from segformer_spark.data.decode import AS_STORED, Decoding, read_image
from segformer_spark.data.masks import decode_color_mask, decode_index_mask, nearest_color, open_image, read_index_mask
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.data.readers.voc import VocDataset
from segformer_spark.errors import DataError
from tests.data.image_files import encode, grey_png, save

PALETTE = SPARK_CLASSES.colors


def read_color_mask(path: Path, colors: Sequence[Color], decoding: Decoding = AS_STORED) -> Mask:
    return decode_color_mask(open_image(path, decoding), colors, decoding=decoding)


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


@pytest.mark.parametrize("label", [-1, 70000])
def test_labels_beyond_bytes_are_not_wrapped(tmp_path: Path, label: int) -> None:
    PIL.Image.fromarray(np.full((3, 3), label, np.int32)).save(tmp_path / "m.tiff")
    with pytest.raises(DataError, match=f"label {label} at x 0, y 0 is not in the class table"):
        read_index_mask(tmp_path / "m.tiff", {0: 0, 1: 1})


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    labels = np.arange(1 << bits).reshape(2, -1)
    path = save(tmp_path / "m.png", grey_png(labels, bits))
    np.testing.assert_array_equal(read_index_mask(path, {label: label for label in range(1 << bits)}), labels)


def test_index_masks_are_no_jpegs(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", encode(np.zeros((8, 8), np.uint8), "JPEG"))
    with pytest.raises(DataError, match=r"m\.png: the mask of class numbers is a JPEG"):
        read_index_mask(path, {0: 0})


def test_index_masks_of_several_pages_and_inverted_ones(tmp_path: Path) -> None:
    page = PIL.Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    page.save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    with pytest.raises(DataError, match="has 2 pages"):
        read_index_mask(tmp_path / "pages.tif", {0: 0})
    with pytest.raises(DataError, match="stored inverted"):
        read_index_mask(tmp_path / "inverted.tif", {0: 0, 255: 1})


def voc_mask(labels: np.ndarray, palette: list[tuple[int, int, int]]) -> bytes:
    image = PIL.Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([channel for color in palette for channel in color])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


VOC_PALETTE = [VocDataset.label_colors.get(index, (1, 2, 3)) for index in range(256)]
LABELS = np.array([[0, 1, 15], [20, 255, 0]], np.uint8)
EXPECTED = np.array([[0, 1, 15], [20, IGNORE_INDEX, 0]])


def voc(content: bytes, tmp_path: Path, setting: str) -> np.ndarray:
    file = open_image(save(tmp_path / "m.png", content))
    decoding = Decoding(palette_masks=setting)  # type: ignore[arg-type]
    return decode_index_mask(file, VocDataset.labels, decoding, VocDataset.label_colors)


@pytest.mark.parametrize("setting", ["check", "index", "color"])
def test_a_palette_that_agrees_with_the_class_table(tmp_path: Path, setting: str) -> None:
    np.testing.assert_array_equal(voc(voc_mask(LABELS, VOC_PALETTE), tmp_path, setting), EXPECTED)


def test_a_palette_in_another_order(tmp_path: Path) -> None:
    """Saved anew, it looks as before: person would be read as aeroplane."""
    order = np.arange(256)
    order[[1, 15]] = 15, 1
    again = voc_mask(order[LABELS], [VOC_PALETTE[index] for index in order])
    with pytest.raises(DataError, match=r"m\.png: the palette shows label 1 in \(192, 128, 128\), the class table has"):
        voc(again, tmp_path, "check")
    np.testing.assert_array_equal(voc(again, tmp_path, "color"), EXPECTED)
    assert voc(again, tmp_path, "index")[0, 1] == 15


def test_a_palette_without_colours_says_nothing(tmp_path: Path) -> None:
    for palette in ([(index,) * 3 for index in range(256)], [(7, 7, 7)] * 256):
        np.testing.assert_array_equal(voc(voc_mask(LABELS, palette), tmp_path, "check"), EXPECTED)


def test_a_palette_color_that_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"colour \(9, 9, 9\) \(index 1\) is not in the class table"):
        voc(voc_mask(LABELS, [VOC_PALETTE[0], (9, 9, 9), *VOC_PALETTE[2:]]), tmp_path, "color")


@pytest.mark.parametrize("edge", [1, 15])
def test_mixed_colours_are_refused_from_a_thousandth_on(tmp_path: Path, edge: int) -> None:
    """Between blue and red lies black's nearest neighbourhood: a third class."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :50], pixels[:, 50:] = PALETTE[1], PALETTE[2]
    pixels[:edge, 49:51] = (127, 0, 127)
    path = save(tmp_path / "m.png", encode(pixels, "PNG"))
    share = 2 * edge / 10_000
    if share < 0.001:
        assert read_color_mask(path, PALETTE).shape == (100, 100)
        return
    with pytest.raises(DataError, match=r"0.3% of the mask's coloured pixels \(30\) lie between class colours"):
        read_color_mask(path, PALETTE)
    ids = read_color_mask(path, PALETTE, decoding=Decoding(nearest_color=True))
    assert ids[0, 49] == 0, "the nearest colour is that of a third class"
    assert (ids[edge:, :50] == 1).all()


def test_an_accepted_mixture_has_its_limit(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), PALETTE[1], np.uint8)
    pixels[:8] = (0, 255, 0)
    path = save(tmp_path / "m.png", encode(pixels, "PNG"))
    with pytest.raises(DataError, match="resemble no class colour"):
        read_color_mask(path, PALETTE, decoding=Decoding(nearest_color=True))
