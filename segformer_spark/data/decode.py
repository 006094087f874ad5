"""Files -> arrays. Truncated files are errors: OpenCV decodes half a JPEG without a word."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from segformer_spark.data.dataset import IGNORE_INDEX, Image, Mask
from segformer_spark.data.files import ReadFile, read_file
from segformer_spark.errors import DataError

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_GIF_START = b"GIF8"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"

Color = tuple[int, int, int]

FOREIGN_DISTANCE = 200
"""A pixel further than this (Euclidean, RGB) from every class colour is foreign. Mixtures of two SPARK colours,
as JPEG makes them at edges, stay within 181; green, white and grey do not."""

FOREIGN_SHARE = 0.05
"""A mask is refused when more than this share of its pixels off the first colour (the background) is foreign."""

_MIN_FOREIGN_PIXELS = 16
_NO_LABEL = 65535
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
_SQUARES = np.arange(-255, 256, dtype=np.int32) ** 2
_FAR = np.iinfo(np.int32).max


def read_image(path: Path, needed_side: int | None = None, read: ReadFile = read_file) -> Image:
    """Decode a JPEG or PNG to uint8 (H, W, 3) RGB.

    Args:
        needed_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, as far as its shorter side stays this long.
        read: gives the file's content.

    Raises:
        DataError: missing, truncated or not an image.
    """
    return decode_image(_read_whole(path, read), path, needed_side)


def decode_image(content: bytes, path: Path, needed_side: int | None = None) -> Image:
    """Decode the content of an image file, as `read_image` does; `path` is for the error message."""
    if content.startswith(_GIF_START):
        return _decode_gif(content, path)
    flag = cv2.IMREAD_COLOR if needed_side is None else _reduced_flag(content, needed_side)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    except cv2.error as error:
        raise DataError(f"{path}: this is not an image that can be decoded: {error.err}") from error
    if pixels is None:
        raise DataError(f"{path}: this is not an image that can be decoded ({len(content)} bytes)")
    rgb: Image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def _decode_gif(content: bytes, path: Path) -> Image:
    """The first frame. OpenCV has no GIF decoder in all its builds; some data sets have GIFs under another name."""
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path}: this is a GIF that cannot be decoded: {error}") from error


def _reduced_flag(content: bytes, needed_side: int) -> int:
    """How OpenCV shall decode: a JPEG's decoder leaves high frequencies out, for other formats nothing is gained."""
    if not content.startswith(_JPEG_START):
        return cv2.IMREAD_COLOR
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:  # reads the header alone
            shorter = min(picture.size)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return cv2.IMREAD_COLOR  # whose error tells
    fitting = (flag for factor, flag in _REDUCED.items() if -(-shorter // factor) >= needed_side)
    return next(fitting, cv2.IMREAD_COLOR)


def _read_whole(path: Path, read: ReadFile) -> bytes:
    """The content of an image file; raises DataError when it is missing, empty or cut."""
    content = read(path)
    if not content:
        raise DataError(f"{path}: the file is empty")
    tail = content.rstrip(b"\0")[-64:]
    if (content.startswith(_JPEG_START) and _JPEG_END not in tail) or (
        content.startswith(_PNG_START) and _PNG_END not in tail
    ):
        raise DataError(f"{path}: the file is truncated ({len(content)} bytes, no end marker); copy it again")
    return content


def read_index_mask(path: Path, table: Mapping[int, int], read: ReadFile = read_file) -> Mask:
    """Decode a mask whose pixel values, or palette indices, are labels.

    A palette PNG is read as its indices: OpenCV would turn them into colours.

    Args:
        table: {label in the file: class id or IGNORE_INDEX}.

    Raises:
        DataError: as `read_image`, a mask with colour channels, or a label that `table` lacks (it is named).
    """
    content = _read_whole(path, read)
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            mode, labels = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{path}: this is not an image that can be decoded ({len(content)} bytes)") from error
    if labels.ndim != 2 or mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(f"{path}: the mask is a {mode} image; class numbers need one channel (grey or palette)")
    lookup = np.full(_NO_LABEL + 1, -1, np.int16)
    lookup[list(table)] = list(table.values())
    wide = labels.astype(np.int64)
    ids = lookup[np.where((wide < 0) | (wide > _NO_LABEL), _NO_LABEL, wide)]
    if (ids < 0).any():
        row, column = (int(index) for index in np.argwhere(ids < 0)[0])
        raise DataError(
            f"{path}: label {int(labels[row, column])} at x {column}, y {row} is not in the class table; "
            f"labels known: {', '.join(str(label) for label in sorted(table))}"
        )
    mask: Mask = ids.astype(np.uint8)
    return mask


def color_tolerance(colors: Sequence[Color], ignored: Color | None = None) -> float:
    """Half the smallest distance between two colours of a table: further off, a pixel may as well be another class."""
    points = np.asarray([*colors, *([] if ignored is None else [ignored])], np.float64)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(distances[~np.eye(len(points), dtype=bool)].min() / 2)


def read_color_mask(
    path: Path,
    colors: Sequence[Color],
    *,
    ignored: Color | None = None,
    foreign_distance: float = FOREIGN_DISTANCE,
    read: ReadFile = read_file,
) -> Mask:
    """Decode an RGB mask to class ids by nearest colour, at its stored size.

    JPEG changes colours (pure red decodes to (254, 0, 0), edges are mixed), so equality and thresholds mislabel.

    Args:
        ignored: colour of pixels without a label.
        foreign_distance: see FOREIGN_DISTANCE.

    Raises:
        DataError: as `read_image`, or more than FOREIGN_SHARE of the pixels resemble no class colour.
    """
    pixels = read_image(path, read=read)
    table = [*colors, *([] if ignored is None else [ignored])]
    pixel_indices, nearest, foreign = _nearest_colors(pixels, table, foreign_distance)
    if ignored is not None:
        nearest[nearest == len(colors)] = IGNORE_INDEX
    ids = np.zeros(pixels.shape[:2], np.uint8)
    ids.reshape(-1)[pixel_indices] = nearest
    # Relative to what is not plain background: a spacecraft may cover less than a hundredth of the image.
    share = float(np.count_nonzero(foreign)) / max(len(pixel_indices), _MIN_FOREIGN_PIXELS / FOREIGN_SHARE)
    _refuse_index_mask(path, pixels, colors)
    if share > FOREIGN_SHARE:
        values, counts = np.unique(pixels.reshape(-1, 3)[pixel_indices[foreign]], axis=0, return_counts=True)
        seen = tuple(int(v) for v in values[counts.argmax()])
        expected = ", ".join(str(color) for color in colors)
        raise DataError(
            f"{path}: {share:.1%} of the mask's coloured pixels resemble no class colour, most often {seen}; "
            f"expected {expected}"
        )
    return ids


def _refuse_index_mask(path: Path, pixels: Image, colors: Sequence[Color]) -> None:
    """A mask that stores 0, 1, 2 instead of colours would decode to nothing but background."""
    brightest = int(pixels.max())
    dimmest_class = min((max(color) for color in colors[1:]), default=0)
    if 0 < brightest < dimmest_class / 8 and np.count_nonzero(pixels) > _MIN_FOREIGN_PIXELS:
        expected = ", ".join(str(color) for color in colors)
        raise DataError(
            f"{path}: the mask's highest value is {brightest}: it holds class numbers, not the colours {expected}"
        )


def nearest_color(
    pixels: Image, colors: Sequence[Color], foreign_distance: float = FOREIGN_DISTANCE
) -> tuple[Mask, NDArray[np.bool_]]:
    """Return, per pixel, the id of the nearest colour and whether it is further than `foreign_distance`.

    Ties go to the lower id. Pixels that equal the first colour, most of a SPARK mask, are settled by one comparison,
    the others by tables of squares.
    """
    ids, foreign = np.zeros(pixels.shape[:2], np.uint8), np.zeros(pixels.shape[:2], np.bool_)
    pixel_indices, nearest, far = _nearest_colors(pixels, colors, foreign_distance)
    ids.reshape(-1)[pixel_indices], foreign.reshape(-1)[pixel_indices] = nearest, far
    return ids, foreign


def _nearest_colors(
    pixels: Image, colors: Sequence[Color], foreign_distance: float
) -> tuple[NDArray[np.intp], NDArray[np.uint8], NDArray[np.bool_]]:
    """Flat indices of the pixels that differ from the first colour, their nearest colours, whether they are foreign."""
    packed = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view(np.uint32).ravel()
    pixel_indices = np.flatnonzero(packed != np.array([*colors[0], 255], np.uint8).view(np.uint32)[0])
    channels = packed[pixel_indices].view(np.uint8).reshape(-1, 4).T[:3]
    nearest, distance = np.zeros(len(pixel_indices), np.uint8), np.full(len(pixel_indices), _FAR, np.int32)
    for number, color in enumerate(colors):
        red, green, blue = (_SQUARES[255 - value : 511 - value] for value in color)
        own = red[channels[0]] + green[channels[1]] + blue[channels[2]]
        nearest[own < distance] = number
        np.minimum(distance, own, out=distance)
    return pixel_indices, nearest, distance > foreign_distance**2


def check_sizes(image: Image, mask: Mask, image_path: Path, mask_path: Path, *, reduced: bool = False) -> None:
    """Raise DataError when an image, with `reduced` maybe decoded at a fraction of its size, and its mask differ."""
    factors = (1, *_REDUCED) if reduced else (1,)
    if all(image.shape[:2] != tuple(-(-side // factor) for side in mask.shape) for factor in factors):
        height, width = image.shape[:2]
        raise DataError(
            f"{image_path} is {width}x{height}, its mask {mask_path} is {mask.shape[1]}x{mask.shape[0]}; "
            "sizes must be equal"
        )
