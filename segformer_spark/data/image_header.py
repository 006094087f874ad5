"""What an image file says of itself before its pixels are decoded."""

from __future__ import annotations

import io
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image
import PIL.ImageCms

from segformer_spark.errors import DataError
from segformer_spark.files.regular_file import open_regular

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    **{_PNG: "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"},
    **{b"II*\0": "TIFF", b"MM\0*": "TIFF"},
}
_PNG_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 274, 256, 257, 258, 262, 277, 339
_WHITE_IS_ZERO, _FLOAT = 0, 3
_COLORS = {
    **dict.fromkeys(("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"), "grey"),
    **dict.fromkeys(("P", "PA", "RGBA", "RGBX"), "RGB"),
}
"""Colour spaces by Pillow's modes; other modes are their own."""

_ERRORS = (
    *(OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, EOFError, AttributeError, OverflowError),
    *(struct.error, zlib.error),
)
"""What Pillow raises for damaged files."""

_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        format: PNG, JPEG, TIFF, BMP, WEBP, GIF, ...
        height, width: of the stored pixels.
        bits: per sample as stored.
        bands: samples per pixel; 1 for grey and for palettes.
        palette: whether samples are indices into a palette.
        alpha: whether there is transparency.
        floating: whether samples are floating-point numbers.
        inverted: whether 0 is white (TIFF).
        colors: "RGB", "grey", or another space such as CMYK.
        profile: the embedded ICC profile, or None.
        orientation: EXIF tag 274, from 1 (upright as stored) to 8.
        pages: pictures in the file.
    """

    format: str
    height: int
    width: int
    bits: int
    bands: int
    palette: bool = False
    alpha: bool = False
    floating: bool = False
    inverted: bool = False
    colors: str = "RGB"
    profile: bytes | None = None
    orientation: int = 1
    pages: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the stored pixels."""
        return self.height, self.width

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after turning by `orientation`."""
        return (self.width, self.height) if self.orientation >= 5 else self.size


def read_header(path: Path) -> ImageHeader:
    """The header of a file, of which no more is read.

    Raises:
        DataError: it cannot be read, is empty or no image.
    """
    try:
        with open_regular(path) as stream:
            start = stream.read(len(_PNG))
            if start != _PNG:
                stream.seek(0)
                return _parsed_header(stream if start else b"", path, os.fstat(stream.fileno()).st_size, start)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _parsed_header(content, path, len(content), start)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}") from error


def parse_header(content: bytes, path: Path) -> ImageHeader:
    """The header of an image file's content; `path` is for the error message.

    Raises:
        DataError: it is empty or no image.
    """
    return _parsed_header(content, path, len(content), content[: len(_PNG)])


def _parsed_header(content: bytes | mmap.mmap | BinaryIO, path: Path, length: int, start: bytes) -> ImageHeader:
    """The header of a content, a mapped PNG or the open file of another format.

    Args:
        length: of the content.
        start: its first bytes.
    """
    if not length:
        raise DataError(f"{path}: the file is empty")
    try:
        if start == _PNG:
            assert isinstance(content, bytes | mmap.mmap)
            return _png(content)
        assert not isinstance(content, mmap.mmap)
        return _other(content)
    except _ERRORS as error:
        name = next((name for sign, name in _SIGNATURES.items() if start.startswith(sign)), None)
        what = "this is not an image that can be decoded"
        what = what if name is None else f"the file is truncated or damaged, a {name} that cannot be decoded"
        raise DataError(f"{path}: {what} ({length} bytes): {_reason(error)}") from error


def refuse_too_large(header: ImageHeader, path: Path, max_pixels: int, option: str = "data.max_pixels") -> None:
    """Raise DataError for an image of more pixels than `max_pixels`, before any memory is taken for them."""
    if header.height * header.width > max_pixels:
        raise DataError(
            f"{path}: the image has {header.width} x {header.height} = {header.width * header.height:,} pixels, "
            f"{max_pixels:,} are allowed",
            f"If it is what it should be, raise {option}.",
        )


def open_with_pillow(content: bytes | BinaryIO) -> PIL.Image.Image:
    """An image that Pillow has opened and not yet decoded, whatever its size: `refuse_too_large` has the limit."""
    with _pillow_limit:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def profile_name(profile: bytes) -> str:
    """What an ICC profile calls itself."""
    try:
        described = PIL.ImageCms.getProfileDescription(PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, PIL.ImageCms.PyCMSError):
        return "unreadable"
    return str(described).strip()


def _reason(error: Exception) -> str:
    return "no known format" if isinstance(error, PIL.UnidentifiedImageError) else str(error)


def _png(content: bytes | mmap.mmap) -> ImageHeader:
    """Chunks of a PNG (W3C, third edition, 5.3 and 11.2); Pillow finds EXIF behind the pixels by decoding them."""
    width, height, bits, kind = struct.unpack(">IIBB", content[16:26])
    if content[12:16] != b"IHDR" or kind not in _PNG_BANDS or not width or not height:
        raise ValueError("the PNG has no valid IHDR chunk")
    alpha, profile, orientation, pages = kind in (4, 6), None, 1, 1
    position = 8
    while position + 8 <= len(content):
        length, name = struct.unpack(">I4s", content[position : position + 8])
        data = content[position + 8 : position + 8 + length] if name != b"IDAT" else b""
        if name == b"tRNS":
            alpha = True
        elif name == b"iCCP":
            with suppress(zlib.error):  # pixels do not depend on it
                profile = zlib.decompress(data.partition(b"\0")[2][1:])
        elif name == b"eXIf":
            orientation = _orientation_of(partial(_parsed, data))
        elif name == b"acTL":
            pages = max(1, int.from_bytes(data[:4], "big"))
        elif name == b"IEND":
            break
        position += 12 + length
    colors = "grey" if kind in (0, 4) else "RGB"
    return ImageHeader(
        *("PNG", height, width, bits, _PNG_BANDS[kind]),
        palette=kind == 3,
        alpha=alpha,
        colors=colors,
        profile=profile,
        orientation=orientation,
        pages=pages,
    )


def _parsed(exif: bytes) -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags.load(exif)
    return tags


def _orientation_of(read: Callable[[], PIL.Image.Exif]) -> int:
    """The orientation; 1 where there is none, or none that can be read: viewers do not turn such images either."""
    try:
        tag = read().get(_ORIENTATION)
    except _ERRORS:
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _other(content: bytes | BinaryIO) -> ImageHeader:
    with open_with_pillow(content) as picture:
        mode, name = picture.mode, str(picture.format)
        width, height = picture.size
        bits, bands, floating, inverted = (1 if mode == "1" else 8), len(picture.getbands()), mode == "F", False
        orientation = _orientation_of(picture.getexif)
        if name == "TIFF":
            tags: Any = picture.tag_v2  # type: ignore[attr-defined]
            bits, bands = max(tags.get(_BITS, (1,))), tags.get(_SAMPLES, 1)
            floating, inverted = _FLOAT in tags.get(_SAMPLE_FORMAT, ()), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
            width, height = tags[_WIDTH], tags[_HEIGHT]  # Pillow's size is that after turning
        return ImageHeader(
            *("JPEG" if name == "MPO" else name, height, width, bits, bands),
            palette=mode in ("P", "PA"),
            alpha=mode in ("LA", "PA", "RGBA") or "transparency" in picture.info,
            floating=floating,
            inverted=inverted,
            colors=_COLORS.get(mode, mode),
            profile=picture.info.get("icc_profile"),
            orientation=orientation,
            pages=int(getattr(picture, "n_frames", 1)),
        )
