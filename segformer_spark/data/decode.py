"""Image files -> arrays. What cannot be read as it is meant is an error that names the file.

JPEG goes through simplejpeg, which hands over the warnings of libjpeg-turbo: OpenCV and Pillow decode half a JPEG
without a word. PNG goes through OpenCV, all else through Pillow; the pixels of the three are equal
(tests/data/test_decode.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from segformer_spark.config.data_schema import MAX_PIXELS, DataConfig
from segformer_spark.config.image_size import Size
from segformer_spark.data.dataset import Image, Mask
from segformer_spark.data.files import ReadFile, read_file
from segformer_spark.data.image_header import ImageHeader, open_with_pillow, parse_header, refuse_too_large
from segformer_spark.data.orientation import TRANSPOSED, turn_back, turn_upright
from segformer_spark.errors import DataError

_END_OF_IMAGE, _PROGRESSIVE = b"\xff\xd9", b"\xff\xc2"
_PREMATURE_END, _UNSUPPORTED = "Premature end of JPEG file", "Unsupported"
_STRAY_BYTES, _MOST_ENDS = re.compile(r"(\d+) extraneous bytes before marker 0xd9"), 4
_REDUCTIONS = (8, 4, 2)
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)


@dataclass(frozen=True)
class Decoding:
    """How files are decoded.

    Attributes:
        orientation: `data.exif_orientation`; None reads pixels as stored and has pairs with differing tags refused.
        max_pixels: images with more are refused; `pixels_option` raises it.
        nearest_color, palette_masks: as in `data`.
    """

    orientation: Literal["stored", "upright"] | None = None
    max_pixels: int = MAX_PIXELS
    nearest_color: bool = False
    palette_masks: Literal["check", "index", "color"] = "check"
    pixels_option: str = "data.max_pixels"

    @classmethod
    def of(cls, config: DataConfig) -> Decoding:
        """What the configuration says."""
        return cls(config.exif_orientation, config.max_pixels, config.nearest_color, config.palette_masks)

    def shown_size(self, header: ImageHeader) -> tuple[int, int]:
        """(height, width) of the decoded image."""
        return header.upright_size if self.orientation == "upright" else header.size

    def shown_orientation(self, header: ImageHeader) -> int:
        """The EXIF orientation by which viewers turn the decoded pixels; 1 for none."""
        return 1 if self.orientation == "upright" else header.orientation


AS_STORED = Decoding()


@dataclass(frozen=True)
class ImageFile:
    """An image file in memory, its header read and its pixels not yet decoded."""

    path: Path
    content: bytes
    header: ImageHeader


def open_image(path: Path, decoding: Decoding = AS_STORED, read: ReadFile = read_file) -> ImageFile:
    """Read a file and its header.

    Args:
        read: gives the file's content.

    Raises:
        DataError: missing, empty, not an image, or too large.
    """
    return image_of(read(path), path, decoding)


def image_of(content: bytes, path: Path, decoding: Decoding = AS_STORED) -> ImageFile:
    """`open_image` of a content that is already there; `path` is for error messages."""
    header = parse_header(content, path)
    refuse_too_large(header, path, decoding.max_pixels, decoding.pixels_option)
    return ImageFile(path, content, header)


def read_image(
    path: Path, needed_size: Size | None = None, read: ReadFile = read_file, decoding: Decoding = AS_STORED
) -> Image:
    """Decode an image file to uint8 (H, W, 3) RGB (`decode_rgb`)."""
    return decode_rgb(open_image(path, decoding, read), decoding, needed_size)


def decode_rgb(file: ImageFile, decoding: Decoding = AS_STORED, needed_size: Size | None = None) -> Image:
    """Decode to uint8 (H, W, 3) RGB: grey is repeated, alpha left out, 16 bits are cut to the upper 8.

    Args:
        needed_size: decode a JPEG at 1/2, 1/4 or 1/8 of its size, as far as it is still shown this high and wide.

    Raises:
        DataError: damaged or cut, or with samples that are no RGB (CMYK, floating point, more than four bands).
    """
    header = file.header
    if header.floating or header.bands > 4 or header.colors not in ("RGB", "grey"):
        kind = "floating-point" if header.floating else f"{header.bands} bands, {header.colors}"
        raise DataError(
            f"{file.path}: the image holds other samples than RGB ({kind})", "Save it as RGB of 8 or 16 bits."
        )
    if header.format == "JPEG":
        pixels = _decode_jpeg(file, _in_file(needed_size, header, decoding))
    else:
        pixels = _decode_png(file) if header.format == "PNG" else _decode_other(file)
    return _shown(pixels, header, decoding)


@dataclass(frozen=True)
class Samples:
    """The samples of a single-band image as they are stored.

    Attributes:
        values: integers (H, W): grey values, or indices into the palette.
        palette: RGB of each index (N, 3); None for grey.
    """

    values: NDArray[np.integer]
    palette: NDArray[np.uint8] | None


def decode_samples(file: ImageFile, decoding: Decoding = AS_STORED) -> Samples:
    """Decode a single-band image without interpreting it: no palette applied, no bit depth stretched.

    Raises:
        DataError: damaged, several bands or pages, floating-point or inverted samples, or a format that changes values.
    """
    path, header = file.path, file.header
    if header.format == "JPEG":
        raise DataError(
            f"{path}: the mask of class numbers is a JPEG, which changes numbers at every edge",
            "Write masks of class numbers as PNG.",
        )
    if header.pages > 1:
        raise DataError(f"{path}: the mask has {header.pages} pages; one is expected")
    with _pillow(file) as picture:
        mode, palette = picture.mode, picture.getpalette("RGB")
        if mode not in ("L", "P", "1", "I") and not mode.startswith("I;16"):
            raise DataError(f"{path}: the mask is a {mode} image; class numbers need one channel (grey or palette)")
        values = np.asarray(picture)
    if header.inverted:
        raise DataError(f"{path}: the mask's numbers are stored inverted (TIFF, white is zero); save it as PNG")
    if mode == "L" and header.bits < 8:  # Pillow stretches 2 and 4 bits to 0..255
        values = values // (255 // ((1 << header.bits) - 1))
    values = _as_stored(values.astype(np.uint8) if mode == "1" else values, header)
    values = _shown(values, header, decoding)
    return Samples(values, np.asarray(palette, np.uint8).reshape(-1, 3) if mode == "P" and palette else None)


def _as_stored(pixels: NDArray[Any], header: ImageHeader) -> NDArray[Any]:
    """Pixels as Pillow gives them -> as the file stores them: Pillow turns those of a TIFF."""
    return turn_back(pixels, header.orientation) if header.format == "TIFF" else pixels


def _shown(pixels: NDArray[Any], header: ImageHeader, decoding: Decoding) -> NDArray[Any]:
    """Stored pixels -> as `decoding` asks for."""
    return turn_upright(pixels, header.orientation) if decoding.orientation == "upright" else pixels


@contextmanager
def _pillow(file: ImageFile) -> Iterator[PIL.Image.Image]:
    """The decoded image."""
    try:
        with open_with_pillow(file.content) as picture:
            picture.load()
            yield picture
    except _PILLOW_ERRORS as error:
        raise _damaged(file, str(error)) from error


def _in_file(size: Size | None, header: ImageHeader, decoding: Decoding) -> Size | None:
    """A size of the image as it is shown -> of the pixels as the file stores them."""
    turned = decoding.orientation == "upright" and header.orientation in TRANSPOSED
    return (size[1], size[0]) if size is not None and turned else size


def _decode_jpeg(file: ImageFile, needed_size: Size | None) -> Image:
    height, width = file.header.size
    high, wide = needed_size or (height, width)
    factor = next((f for f in _REDUCTIONS if -(-height // f) >= high and -(-width // f) >= wide), 1)
    smallest = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    try:
        return _jpeg_rows(file.content, smallest)
    except ValueError as error:
        reason = str(error)
    if reason.startswith(_UNSUPPORTED):
        raise DataError(f"{file.path}: this kind of JPEG cannot be decoded: {reason}", "Save it as a baseline JPEG.")
    for content in _with_plain_end(file.content, reason):
        with suppress(ValueError):
            return _jpeg_rows(content, smallest)
    raise _damaged(file, reason)


def _jpeg_rows(content: bytes, smallest: dict[str, int]) -> Image:
    """RGB rows; raises ValueError with the message of libjpeg's first warning or error."""
    pixels: Image = simplejpeg.decode_jpeg(content, "RGB", strict=True, **smallest)
    return pixels


def _with_plain_end(content: bytes, reason: str) -> Iterator[bytes]:
    """The content as it would be if only its end were unusual: if it decodes without a warning, all rows are there."""
    if reason == _PREMATURE_END:
        yield content + _END_OF_IMAGE
    stray = _STRAY_BYTES.search(reason)
    if stray is not None and _PROGRESSIVE not in content:  # where whole scans may be missing before the stray bytes
        ends = (found.start() for found in re.finditer(re.escape(_END_OF_IMAGE), content))  # thumbnails have one, too
        yield from (content[: max(0, end - int(stray[1]))] + _END_OF_IMAGE for end in islice(ends, _MOST_ENDS))


def _decode_png(file: ImageFile) -> Image:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: Image | None = cv2.imdecode(np.frombuffer(file.content, np.uint8), flags)
    except cv2.error as error:
        raise _damaged(file, error.err) from error
    if pixels is None:
        raise _damaged(file, "the rows are not complete")
    return pixels


def _decode_other(file: ImageFile) -> Image:
    """Formats of which data sets have few; of several pages the first."""
    with _pillow(file) as picture:
        if picture.mode.startswith("I;16"):
            upper = (np.asarray(picture) >> max(0, file.header.bits - 8)).astype(np.uint8)
            pixels = np.repeat(upper[..., None], 3, axis=2)
        elif picture.mode == "I":
            raise DataError(f"{file.path}: the image has {file.header.bits} bits a sample; save it with 8 or 16")
        else:
            pixels = np.asarray(picture.convert("RGB"))
    return _as_stored(pixels, file.header)


def _damaged(file: ImageFile, reason: str) -> DataError:
    return DataError(
        f"{file.path}: the file is truncated or damaged ({len(file.content)} bytes of {file.header.format}): {reason}",
        "Copy it again from where it came.",
    )


def check_sizes(image: Image, mask: Mask, image_path: Path, mask_path: Path, *, reduced: bool = False) -> None:
    """Raise DataError when an image, with `reduced` maybe decoded at a fraction of its size, and its mask differ."""
    factors = (1, *_REDUCTIONS) if reduced else (1,)
    if all(image.shape[:2] != tuple(-(-side // factor) for side in mask.shape) for factor in factors):
        height, width = image.shape[:2]
        raise DataError(
            f"{image_path} is {width}x{height}, its mask {mask_path} is {mask.shape[1]}x{mask.shape[0]}; "
            "sizes must be equal"
        )
