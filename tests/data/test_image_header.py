from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.decode import decode_rgb, image_of
from segformer_spark.data.image_header import ImageHeader, open_with_pillow, parse_header, profile_name
from segformer_spark.errors import DataError
from tests.data.image_files import chunk, encode, grey_png, picture

WHERE = Path("x")


def header(content: bytes) -> ImageHeader:
    return parse_header(content, WHERE)


def converted(mode: str, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(picture()).convert(mode)
    if mode.endswith("A"):
        image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], 9))  # type: ignore[index]
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("RGB", "PNG", (8, 3, False, False, "RGB")),
        ("RGBA", "PNG", (8, 4, False, True, "RGB")),
        ("LA", "PNG", (8, 2, False, True, "grey")),
        ("L", "PNG", (8, 1, False, False, "grey")),
        ("P", "PNG", (8, 1, True, False, "RGB")),
        ("1", "PNG", (1, 1, False, False, "grey")),
        ("RGB", "JPEG", (8, 3, False, False, "RGB")),
        ("L", "JPEG", (8, 1, False, False, "grey")),
        ("CMYK", "JPEG", (8, 4, False, False, "CMYK")),
        ("RGB", "TIFF", (8, 3, False, False, "RGB")),
        ("F", "TIFF", (32, 1, False, False, "grey")),
        ("I;16", "TIFF", (16, 1, False, False, "grey")),
        ("P", "BMP", (8, 1, True, False, "RGB")),
        ("RGBA", "WEBP", (8, 4, False, True, "RGB")),
        ("P", "GIF", (8, 1, True, False, "RGB")),
    ],
)
def test_depth_bands_palette_alpha_and_colors(mode: str, kind: str, expected: tuple[int, int, bool, bool, str]) -> None:
    found = header(converted(mode, kind))
    assert (found.format, found.size) == (kind, (12, 19))
    assert (found.bits, found.bands, found.palette, found.alpha, found.colors) == expected
    assert found.floating == (mode == "F")
    assert (found.orientation, found.pages, found.profile) == (1, 1, None)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_bits_of_a_png(bits: int) -> None:
    assert header(grey_png(np.ones((3, 5), np.uint8), bits)).bits == bits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_and_stored_size(kind: str, orientation: int) -> None:
    found = header(encode(picture(), kind, orientation))
    assert (found.orientation, found.size) == (orientation, (12, 19))
    assert found.upright_size == ((19, 12) if orientation == 6 else (12, 19))


def test_png_says_its_orientation_behind_the_pixels_too() -> None:
    exif = PIL.Image.Exif()
    exif[274] = 8
    late = grey_png(np.ones((3, 5), np.uint8), 8, behind=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert header(late).orientation == 8


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_none(kind: str, damage: bytes) -> None:
    """Pixels do not depend on it, and viewers do not turn such an image."""
    if kind == "PNG":
        content = grey_png(np.ones((3, 5), np.uint8), 8, chunk(b"eXIf", damage[6:]) + chunk(b"iCCP", b"x\0\0junk"))
    else:
        content = encode(picture(), kind, exif=damage)
    found = header(content)
    assert (found.orientation, found.profile) == (1, None)
    assert decode_rgb(image_of(content, WHERE)).shape[2] == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colour_profiles_are_found_and_named(kind: str) -> None:
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    found = header(encode(picture(), kind, icc_profile=profile)).profile
    assert found == profile
    assert "sRGB" in profile_name(found)
    assert profile_name(b"nothing") == "unreadable"


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_pages_are_counted(kind: str) -> None:
    stream = io.BytesIO()
    first, second = (PIL.Image.fromarray(picture(seed=seed)) for seed in (0, 1))
    first.save(stream, kind, save_all=True, append_images=[second])
    assert header(stream.getvalue()).pages == 2


def test_an_image_beyond_pillows_limit_is_opened_and_the_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert open_with_pillow(encode(picture(), "BMP")).size == (19, 12)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM"])
)
def test_foreign_bytes_are_an_error_that_names_the_file(content: bytes, start: bytes) -> None:
    try:
        header(start + content)
    except DataError as error:
        assert str(error).startswith("x: ")
