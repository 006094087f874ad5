"""Mask files -> class ids: by number or palette index, or by the nearest colour of a class table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import IGNORE_INDEX, Color, Image, Mask
from segformer_spark.data.decode import AS_STORED, Decoding, ImageFile, decode_rgb, decode_samples, open_image
from segformer_spark.data.files import ReadFile, read_file
from segformer_spark.errors import DataError

FOREIGN_DISTANCE = 200
"""A pixel further than this (Euclidean, RGB) from every class colour is foreign. Mixtures of two SPARK colours,
as JPEG makes them at edges, stay within 181; green, white and grey do not."""

LOSSLESS_DISTANCE = 8.0
"""The same for masks in formats that keep colours."""

MIXED_SHARE, FOREIGN_SHARE = 0.001, 0.05
"""A mask is refused when more than FOREIGN_SHARE of its pixels off the first colour (the background) are foreign, and
from MIXED_SHARE on unless `data.nearest_color` accepts them: the edges of an anti-aliased mask, where a mixture of two
classes is nearest to a third."""

LabelColors = Mapping[int, Color]
"""{label in mask files: its colour in the palettes of the data set}."""

LOSSY_FORMATS = ("JPEG", "WEBP")
"""Formats that change colours."""

_MIN_FOREIGN_PIXELS = 16
_NO_LABEL = 65535
_SQUARES = np.arange(-255, 256, dtype=np.int32) ** 2
_FAR = np.iinfo(np.int32).max


def read_index_mask(
    path: Path, table: Mapping[int, int], read: ReadFile = read_file, decoding: Decoding = AS_STORED
) -> Mask:
    """Decode a mask whose pixel values, or palette indices, are labels (`decode_index_mask`)."""
    return decode_index_mask(open_image(path, decoding, read), table, decoding)


def decode_index_mask(
    file: ImageFile,
    table: Mapping[int, int],
    decoding: Decoding = AS_STORED,
    colors: LabelColors | None = None,
) -> Mask:
    """Decode a mask whose pixel values, or palette indices, are labels.

    Args:
        table: {label in the file: class id or IGNORE_INDEX}.
        colors: what palettes must say, where the data set has fixed colours (`data.palette_masks`).

    Raises:
        DataError: as `decode_samples`, a label that `table` lacks (it is named), or a palette that contradicts
            `colors`.
    """
    samples = decode_samples(file, decoding)
    labels = samples.values
    if colors is not None and samples.palette is not None and decoding.palette_masks != "index":
        if decoding.palette_masks == "color":
            labels = _labels_by_color(file, labels, samples.palette, colors)
        else:
            _refuse_other_palette(file, labels, samples.palette, colors)
    ids, unknown = _look_up(labels, table)
    if unknown.any():
        row, column = (int(index) for index in np.argwhere(unknown)[0])
        raise DataError(
            f"{file.path}: label {int(labels[row, column])} at x {column}, y {row} is not in the class table; "
            f"labels known: {', '.join(str(label) for label in sorted(table))}"
        )
    return ids


def _look_up(labels: NDArray[np.integer], table: Mapping[int, int]) -> tuple[Mask, NDArray[np.integer]]:
    """Class ids of labels, and where (not 0) a label is not in the table."""
    size = 256 if labels.dtype == np.uint8 else _NO_LABEL + 2
    ids, unknown = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    known = [label for label in table if label < size]
    ids[known], unknown[known] = [table[label] for label in known], 0
    if labels.dtype == np.uint8:
        return cv2.LUT(labels, ids), cv2.LUT(labels, unknown)
    wide = labels.astype(np.int64)
    wide = np.where((wide < 0) | (wide > _NO_LABEL), _NO_LABEL + 1, wide)
    return ids[wide], unknown[wide]


def _refuse_other_palette(
    file: ImageFile, labels: NDArray[np.integer], palette: NDArray[np.uint8], colors: LabelColors
) -> None:
    """A mask saved anew with its palette sorted looks as before and has other numbers."""
    used = {int(label): _color_of(palette, int(label)) for label in np.unique(labels)}
    grey_levels = all(color == (label, label, label) for label, color in used.items())
    if grey_levels or len(np.unique(palette, axis=0)) == 1:
        return  # a palette that says nothing
    for label, color in used.items():
        if label in colors and color != colors[label]:
            raise DataError(
                f"{file.path}: the palette shows label {label} in {color}, the class table has {colors[label]} for it",
                "Set data.palette_masks: color if the colours are right (a palette in another order), or index if the "
                "numbers are.",
            )


def _color_of(palette: NDArray[np.uint8], label: int) -> Color | None:
    return (int(palette[label, 0]), int(palette[label, 1]), int(palette[label, 2])) if label < len(palette) else None


def _labels_by_color(
    file: ImageFile, indices: NDArray[np.integer], palette: NDArray[np.uint8], colors: LabelColors
) -> NDArray[np.int64]:
    """Palette indices -> the labels that have their colours."""
    by_color = {color: label for label, color in colors.items()}
    lookup = np.full(256, -1, np.int64)
    for index in np.unique(indices):
        color = _color_of(palette, int(index))
        if color not in by_color:
            raise DataError(f"{file.path}: the palette's colour {color} (index {index}) is not in the class table")
        lookup[index] = by_color[color]
    labels: NDArray[np.int64] = lookup[indices]
    return labels


def color_tolerance(colors: Sequence[Color], ignored: Color | None = None) -> float:
    """Half the smallest distance between two colours of a table: further off, a pixel may as well be another class."""
    points = np.asarray([*colors, *([] if ignored is None else [ignored])], np.float64)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(distances[~np.eye(len(points), dtype=bool)].min() / 2)


def decode_color_mask(
    file: ImageFile,
    colors: Sequence[Color],
    *,
    ignored: Color | None = None,
    foreign_distance: float = FOREIGN_DISTANCE,
    decoding: Decoding = AS_STORED,
) -> Mask:
    """Decode an RGB mask to class ids by nearest colour.

    JPEG changes colours (pure red decodes to (254, 0, 0), edges are mixed), so equality and thresholds mislabel.

    Args:
        ignored: colour of pixels without a label.
        foreign_distance: of masks in lossy formats, see FOREIGN_DISTANCE; others have LOSSLESS_DISTANCE.

    Raises:
        DataError: as `decode_rgb`, or too many pixels resemble no class colour (MIXED_SHARE, FOREIGN_SHARE).
    """
    pixels = decode_rgb(file, decoding)
    table = [*colors, *([] if ignored is None else [ignored])]
    # Between two colours there is no third class that a mixture could be taken for.
    harmless = decoding.nearest_color and len(table) == 2
    scattered = file.header.format in LOSSY_FORMATS or harmless
    distance = foreign_distance if scattered else min(foreign_distance, LOSSLESS_DISTANCE)
    pixel_indices, nearest, foreign = _nearest_colors(pixels, table, distance)
    if ignored is not None:
        nearest[nearest == len(colors)] = IGNORE_INDEX
    ids = np.zeros(pixels.shape[:2], np.uint8)
    ids.reshape(-1)[pixel_indices] = nearest
    _refuse_index_mask(file.path, pixels, colors)
    _refuse_foreign(file.path, pixels.reshape(-1, 3)[pixel_indices], foreign, colors, decoding)
    return ids


def _refuse_foreign(
    path: Path, colored: Image, foreign: NDArray[np.bool_], colors: Sequence[Color], decoding: Decoding
) -> None:
    """Raise DataError where too many of the pixels (N, 3) off the background resemble no class.

    Shares are relative to these: a spacecraft may cover less than a hundredth of the image.
    """
    number = int(np.count_nonzero(foreign))
    if number / max(1, len(colored)) < MIXED_SHARE:
        return
    values, counts = np.unique(colored[foreign], axis=0, return_counts=True)
    seen = tuple(int(v) for v in values[counts.argmax()])
    expected = ", ".join(str(color) for color in colors)
    what = f"{number / len(colored):.1%} of the mask's coloured pixels"
    if number / max(len(colored), _MIN_FOREIGN_PIXELS / FOREIGN_SHARE) > FOREIGN_SHARE:
        raise DataError(f"{path}: {what} resemble no class colour, most often {seen}; expected {expected}")
    if not decoding.nearest_color:
        raise DataError(
            f"{path}: {what} ({number}) lie between class colours, as anti-aliased edges do, most often {seen}; the "
            f"nearest colour may be that of a third class; expected {expected}",
            "Draw masks without anti-aliasing, or set data.nearest_color: true to take the nearest colour.",
        )


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
