from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from segformer_spark.config.image_size import Size
from segformer_spark.data.decode import Decoding, check_sizes, decode_samples, image_of, read_image
from segformer_spark.data.masks import read_index_mask
from segformer_spark.errors import DataError
from tests.data.image_files import encode, grey_png, picture, save

JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 90},
    "progressive": {"quality": 75, "progressive": True},
    "full chroma": {"quality": 95, "subsampling": 0},
    "half chroma": {"quality": 60, "subsampling": 1},
    "restart markers": {"quality": 80, "restart_marker_rows": 1},
}
LARGE = picture(90, 141)


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


def test_sizes_must_agree() -> None:
    with pytest.raises(DataError, match="is 4x2, its mask m is 2x2"):
        check_sizes(np.zeros((2, 4, 3), np.uint8), np.zeros((2, 2), np.uint8), Path("i"), Path("m"))


@pytest.mark.parametrize(
    ("needed", "size"),
    [
        ((52, 52), (52, 68)),
        ((27, 27), (52, 68)),
        ((26, 26), (26, 34)),
        ((26, 35), (52, 68)),
        ((14, 34), (26, 34)),
        ((13, 13), (13, 17)),
        ((1, 18), (26, 34)),
        ((1, 1), (13, 17)),
    ],
)
def test_a_jpeg_is_decoded_no_smaller_than_needed(tmp_path: Path, needed: Size, size: Size) -> None:
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
    assert read_image(tmp_path / "i.jpg", (53, 1)).shape == whole.shape


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
    with pytest.raises(DataError, match=r"huge\.png: .*3,600,000,000 pixels, .*raise data.max_pixels"):
        read_image(path)
    with pytest.raises(DataError, match=r"huge\.png: .*truncated or damaged"):
        read_image(path, decoding=Decoding(max_pixels=10**10))
    with pytest.raises(DataError, match=r"huge\.png: .*truncated or damaged"):
        read_index_mask(path, {0: 0}, decoding=Decoding(max_pixels=10**10))
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("grey", [False, True])
def test_jpegs_are_pillows_and_opencvs_pixels(tmp_path: Path, kind: str, grey: bool) -> None:
    content = encode(LARGE[..., 0] if grey else LARGE, "JPEG", **JPEGS[kind])
    pixels = read_image(save(tmp_path / "x.jpg", content))
    np.testing.assert_array_equal(pixels, np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")))
    np.testing.assert_array_equal(pixels, cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB))


LOSSLESS = {
    **{f"PNG {mode}": ("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"BMP {mode}": ("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")},
    **{f"TIFF {mode}": ("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "TIFF deflated": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "WEBP": ("WEBP", "RGB", {"lossless": True}),
    "WEBP with alpha": ("WEBP", "RGBA", {"lossless": True, "exact": True}),
    "GIF": ("GIF", "P", {}),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(tmp_path: Path, kind: str) -> None:
    """Alpha is left out, not blended."""
    name, mode, options = LOSSLESS[kind]
    image = PIL.Image.fromarray(LARGE).convert(mode)
    if mode.endswith("A"):
        image.putalpha(PIL.Image.fromarray(LARGE[..., 2]))
    image.save(tmp_path / "x", name, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "x"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_depths_of_grey_pngs(tmp_path: Path, bits: int) -> None:
    """Images are stretched to 0..255, labels are the samples as they are stored."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, (9, 13))
    path = save(tmp_path / "x.png", grey_png(values, bits))
    expected = values >> 8 if bits == 16 else values * 255 // ((1 << bits) - 1)
    np.testing.assert_array_equal(read_image(path)[..., 1], expected)
    np.testing.assert_array_equal(decode_samples(image_of(path.read_bytes(), path)).values, values)


def test_sixteen_bits_are_cut_to_the_upper_eight(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 13), dtype=np.uint16)
    PIL.Image.fromarray(values).save(tmp_path / "x.tif")
    cv2.imwrite(str(tmp_path / "color.png"), np.repeat(values[..., None], 3, 2))
    for name in ("x.tif", "color.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.repeat(values[..., None] >> 8, 3, 2))


@pytest.mark.parametrize("mode", ["CMYK", "F", "LAB", "I"])
def test_samples_that_are_no_rgb_are_refused(tmp_path: Path, mode: str) -> None:
    kind = "TIFF"
    image = PIL.Image.fromarray(LARGE)
    image = image.convert("L").convert(mode) if mode in "FI" else image.convert("CMYK") if mode == "CMYK" else image
    if mode == "LAB":
        image = PIL.Image.merge("LAB", image.split())
    image.save(tmp_path / "x.tif", kind)
    with pytest.raises(DataError, match=r"x\.tif: .*[Ss]ave it"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", JPEGS)
def test_what_libjpeg_misses_decides_not_the_last_bytes(tmp_path: Path, kind: str) -> None:
    """A long trailer, a missing end marker and stray bytes before it are no damage; half an image with one is."""
    content = encode(LARGE, "JPEG", **JPEGS[kind])
    whole = read_image(save(tmp_path / "x.jpg", content))
    end = content[-2:]
    assert end == b"\xff\xd9"
    stray = [content[:-2] + b"stray" + end] if kind != "progressive" else []
    for good in (content + b"trailer" * 500, content[:-2], content + bytes(300), *stray):
        np.testing.assert_array_equal(read_image(save(tmp_path / "good.jpg", good)), whole)
    half = content[: len(content) // 2]
    for bad in (half, half + end, half + bytes(len(half)), half + bytes(len(half)) + end):
        with pytest.raises(DataError, match=r"bad\.jpg: the file is truncated or damaged"):
            read_image(save(tmp_path / "bad.jpg", bad))


def test_bytes_behind_a_png_are_no_damage_and_half_its_pixels_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 40))
    path = save(tmp_path / "x.png", grey_png(values, 8) + b"trailer" * 100)
    np.testing.assert_array_equal(read_image(path)[..., 0], values)
    table = {label: label % 2 for label in range(256)}
    np.testing.assert_array_equal(read_index_mask(path, table), values % 2)
    save(path, grey_png(values, 8, share=0.5))
    for read in (read_image, lambda path: read_index_mask(path, table)):
        with pytest.raises(DataError, match=r"x\.png: the file is truncated or damaged"):
            read(path)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "WEBP", "GIF"])
def test_half_a_file_of_other_formats(tmp_path: Path, kind: str) -> None:
    content = encode(picture(200, 200), kind)
    with pytest.raises(DataError, match=r"x: .*(truncated|damaged)"):
        read_image(save(tmp_path / "x", content[: len(content) // 2]))


def test_one_limit_of_pixels_for_all_formats(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"):
        path = save(tmp_path / f"x.{kind}", encode(picture(12, 19), kind))
        assert read_image(path, decoding=Decoding(max_pixels=228)).shape == (12, 19, 3)
        with pytest.raises(DataError, match=r"19 x 12 = 228 pixels, 227 are allowed.*raise --max-pixels"):
            read_image(path, decoding=Decoding(max_pixels=227, pixels_option="--max-pixels"))
