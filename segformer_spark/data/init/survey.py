"""What the masks of a folder hold: numbers or colours, and how many pixels of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.data.dataset import Color, Image
from segformer_spark.data.decode import Decoding, ImageFile, decode_rgb, decode_samples, open_image
from segformer_spark.data.image_header import ImageHeader
from segformer_spark.data.masks import LOSSY_FORMATS
from segformer_spark.errors import DataError

MOST_CLASSES = 255
_LOSSY_DISTANCE, _LOSSLESS_DISTANCE = 60.0, 8.0
_LEAST_SHARE = 0.0005
_NEIGHBOURS, _ALIKE = np.ones((3, 3), np.uint8), {True: 40, False: 8}
_MOST_MIXED, _AREA_SHARE, _FEW = 0.2, 0.05, 2
_MOST_GREYS = 10
"""Masks of class numbers that include 0 and 255 have no more of them."""


@dataclass
class MaskFacts:
    """One mask and its image.

    Attributes:
        counts: {number or colour: pixels}.
        palette: {index: colour} of a palette mask.
        interior: {colour: pixels whose neighbours resemble them}.
    """

    image: Path
    mask: Path
    image_header: ImageHeader
    mask_header: ImageHeader
    counts: Counter[int | Color]
    palette: Mapping[int, Color] = field(default_factory=dict)
    interior: Counter[int | Color] = field(default_factory=Counter)


@dataclass(frozen=True)
class Survey:
    """All masks.

    Attributes:
        kind: whether they hold numbers or colours.
        masks: facts of each.
        lossy: whether there are masks in a format that changes colours.
    """

    kind: Literal["index", "color"]
    masks: Sequence[MaskFacts]
    lossy: bool

    @cached_property
    def total(self) -> Counter[int | Color]:
        """Pixels of each number or colour over all masks."""
        return _sum(one.counts for one in self.masks)

    @cached_property
    def interior(self) -> Counter[int | Color]:
        """Pixels of each colour whose neighbours resemble them, over all masks."""
        return _sum(one.interior for one in self.masks)


def _sum(counters: Iterable[Counter[int | Color]]) -> Counter[int | Color]:
    total: Counter[int | Color] = Counter()
    for one in counters:
        total.update(one)
    return total


def survey_masks(pairs: Iterable[tuple[Path, Path]], decoding: Decoding) -> Survey:
    """Read every mask once, and the header of every image.

    Raises:
        DataError: a file cannot be read, the sizes of a pair differ, or some masks hold numbers and others colours.
    """
    masks = [_facts(image, mask, decoding) for image, mask in pairs]
    numbers = [one for one in masks if _holds_numbers(one.mask_header)]
    if numbers and len(numbers) < len(masks):
        other = next(one for one in masks if not _holds_numbers(one.mask_header))
        raise DataError(
            f"{len(numbers)} masks hold one number per pixel ({numbers[0].mask}), {len(masks) - len(numbers)} hold "
            f"colours ({other.mask})",
            "Which of them are right? Keep masks of one kind in the folder.",
        )
    lossy = any(one.mask_header.format in LOSSY_FORMATS for one in masks)
    survey = Survey("index" if numbers else "color", masks, lossy)
    return Survey("color", [_as_colors(one) for one in masks], lossy) if numbers and _is_smoothed(survey) else survey


def _holds_numbers(mask: ImageHeader) -> bool:
    return mask.bands == 1 and mask.format != "JPEG"


def _is_smoothed(survey: Survey) -> bool:
    """Whether grey masks are black and white with smoothed edges."""
    total = survey.total
    between = sum(total.values()) - total[0] - total[255]
    is_black_and_white = total[0] > 0 and total[255] > 0
    return is_black_and_white and len(total) > _MOST_GREYS and between < _MOST_MIXED * sum(total.values())


def _as_colors(one: MaskFacts) -> MaskFacts:
    counts: Counter[int | Color] = Counter({(int(v), int(v), int(v)): n for v, n in one.counts.items()})  # type: ignore[arg-type]
    ends = ((0, 0, 0), (255, 255, 255))
    return replace(one, counts=counts, interior=Counter({end: counts[end] for end in ends}))


def _facts(image: Path, mask: Path, decoding: Decoding) -> MaskFacts:
    picture, labels = open_image(image, decoding), open_image(mask, decoding)
    _refuse_unreadable(picture)
    _refuse_sizes(image, mask, picture.header, labels.header)
    if _holds_numbers(labels.header):
        samples = decode_samples(labels, decoding)
        values, counts = np.unique(samples.values, return_counts=True)
        palette = {} if samples.palette is None else _used_palette(samples.palette, values)
        pixels: Counter[int | Color] = Counter({int(v): int(n) for v, n in zip(values, counts, strict=True)})
        return MaskFacts(image, mask, picture.header, labels.header, pixels, palette)
    rgb = decode_rgb(labels, decoding)
    _refuse_hidden(labels, rgb)
    spread = (cv2.dilate(rgb, _NEIGHBOURS).astype(np.int16) - cv2.erode(rgb, _NEIGHBOURS)).max(-1)
    inside = _colors(rgb[spread <= _ALIKE[labels.header.format in LOSSY_FORMATS]])
    return MaskFacts(image, mask, picture.header, labels.header, _colors(rgb), interior=inside)


def _refuse_unreadable(picture: ImageFile) -> None:
    header = picture.header
    if header.floating or header.bands > 4 or header.colors not in ("RGB", "grey"):
        kind = "floating-point samples" if header.floating else f"{header.bands} bands, {header.colors}"
        raise DataError(
            f"{picture.path}: the image has {kind}, images are grey or RGB", "Save it as RGB of 8 or 16 bits."
        )


def _refuse_sizes(image: Path, mask: Path, own: ImageHeader, other: ImageHeader) -> None:
    sizes = {own.size, own.upright_size} & {other.size, other.upright_size}
    if not sizes:
        raise DataError(
            f"{image} is {own.width}x{own.height}, its mask {mask} is {other.width}x{other.height}; sizes must be equal"
        )


def _refuse_hidden(labels: ImageFile, rgb: Image) -> None:
    """A mask whose only content is its transparency would be read as one class."""
    if labels.header.alpha and bool((rgb == rgb[0, 0]).all()):
        raise DataError(
            f"{labels.path}: all pixels of the mask have one colour, only its transparency differs",
            "Is the transparency the mask? Save it as a grey image of 0 and 255.",
        )


def _used_palette(palette: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], values: Iterable[int]) -> dict[int, Color]:
    rows = {int(v): palette[v] for v in values if v < len(palette)}
    return {value: (int(row[0]), int(row[1]), int(row[2])) for value, row in rows.items()}


def _colors(rgb: NDArray[np.uint8]) -> Counter[int | Color]:
    wide = rgb.astype(np.uint32)
    values, counts = np.unique(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], return_counts=True)
    return Counter(
        {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255): int(n) for v, n in zip(values, counts, strict=True)}
    )


def main_colors(survey: Survey) -> tuple[dict[Color, list[Color]], float]:
    """{colour of a class: all colours that are taken for it}, the most frequent first, and the share of pixels that
    resemble none.

    Formats that change colours scatter them, and smoothed edges mix them: then a class is a colour that has areas, of
    pixels with neighbours like themselves, and takes what is near it.

    Raises:
        DataError: too many colours, or too many pixels between them: this is no mask of a few colours.
    """
    total, mixed = survey.total, _mixed(survey)
    radius = _LOSSY_DISTANCE if survey.lossy else _LOSSLESS_DISTANCE
    counted = survey.interior if mixed else total
    least = _LEAST_SHARE * sum(counted.values()) if mixed else 0
    centers = _centers(counted, radius, least)
    colors = np.asarray(list(total), np.float64).reshape(-1, 3)
    pixels = np.asarray(list(total.values()))
    if not 0 < len(centers) <= MOST_CLASSES:
        raise _no_mask(survey, len(centers), 0.0)
    distances = np.linalg.norm(colors[:, None] - np.asarray(centers, np.float64)[None], axis=2)
    nearest, far = distances.argmin(1), distances.min(1) > radius
    between = float(pixels[far].sum() / pixels.sum())
    if between > _MOST_MIXED:
        raise _no_mask(survey, len(centers), 1 - between)
    found: dict[Color, list[Color]] = {}
    for index, center in enumerate(centers):
        own = colors[nearest == index]
        found[_snapped(center, survey.lossy)] = [(int(c[0]), int(c[1]), int(c[2])) for c in own]
    return found, between


def _centers(counted: Counter[int | Color], radius: float, least: float) -> list[NDArray[np.float64]]:
    """The most frequent colours, each further than `radius` from those before it, with at least so many pixels."""
    order = counted.most_common()
    colors = np.asarray([color for color, _ in order], np.float64).reshape(-1, 3)
    numbers = np.asarray([number for _, number in order])
    centers: list[NDArray[np.float64]] = []
    left = np.ones(len(colors), bool)
    while left.any() and len(centers) <= MOST_CLASSES:
        first = int(np.flatnonzero(left)[0])
        near = left & (np.linalg.norm(colors - colors[first], axis=1) <= radius)
        if numbers[near].sum() >= least:
            centers.append(colors[first])
        left &= ~near
    return centers


def _no_mask(survey: Survey, number: int, share: float) -> DataError:
    return DataError(
        f"{survey.masks[0].mask} and the other masks have {len(survey.total):,} colours, of which the most frequent "
        f"{number} cover {share:.1%} of the pixels",
        "Are these the masks? They should show each class in one colour.",
    )


def _mixed(survey: Survey) -> bool:
    """Whether there are colours that stand for nothing: mixtures at edges, which have no areas."""
    interior = survey.interior
    without_areas = [color for color, number in survey.total.items() if interior[color] < _AREA_SHARE * number]
    return survey.lossy or len(without_areas) > _FEW


def _snapped(color: np.ndarray[tuple[int, ...], np.dtype[np.float64]], lossy: bool) -> Color:
    """The colour that was drawn: pure red comes out of a JPEG as (254, 0, 0)."""
    values = [0 if lossy and c < 16 else 255 if lossy and c > 239 else int(c) for c in color]
    return values[0], values[1], values[2]
