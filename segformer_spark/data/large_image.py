"""Images that are read from top to bottom, a band of rows at a time, by libvips (LGPL-2.1, through pyvips, MIT)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segformer_spark.config.image_size import Size
from segformer_spark.data.dataset import Image
from segformer_spark.data.image_header import ImageHeader
from segformer_spark.data.resize import resize_image
from segformer_spark.errors import DataError, UserError

_BAND = 256
_EDGE = 1e-3


class LargeImage:
    """A file of RGB or grey, 8 or 16 bits, in uint8 RGB as `decode_rgb` gives it; pixels as the file stores them."""

    def __init__(self, path: Path, header: ImageHeader) -> None:
        self.path, self.header = path, header

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.header.size

    def bands(self, height: int = _BAND) -> Iterator[Image]:
        """Bands (h, W, 3) of at most `height` rows, in order; every call reads the file anew.

        Raises:
            DataError: the file is truncated or damaged.
            UserError: pyvips is not installed.
        """
        pyvips = _pyvips()
        try:
            image = pyvips.Image.new_from_file(str(self.path), access="sequential", fail_on="warning")
            region = pyvips.Region.new(image)
            for top in range(0, image.height, height):
                rows = min(height, image.height - top)
                yield self._rgb(region.fetch(0, top, image.width, rows), image, rows)
        except pyvips.Error as error:
            reason = " ".join(str(error.detail).split())
            raise DataError(f"{self.path}: the file is truncated or damaged: {reason}") from error

    def _rgb(self, content: bytes, image: Any, rows: int) -> Image:
        dtype = {"uchar": np.uint8, "ushort": np.uint16}[image.format]
        pixels: NDArray[Any] = np.frombuffer(content, dtype).reshape(rows, image.width, image.bands)
        if dtype is np.uint16:
            pixels = (pixels >> max(0, self.header.bits - 8)).astype(np.uint8)
        pixels = pixels[..., :3] if image.bands >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
        return np.ascontiguousarray(pixels)

    def resized(self, size: Size) -> Image:
        """As `resize_image` of the whole image, in one pass over the file."""
        height, width = self.size
        smaller = min(size[0], height), min(size[1], width)
        shrunk = self._shrunk(smaller)
        return resize_image(shrunk, size)

    def _shrunk(self, size: Size) -> Image:
        """Averaged over areas as cv2.INTER_AREA does it: columns by OpenCV itself, then rows in the same order."""
        height, width = self.size
        result = np.empty((*size, 3), np.uint8)
        sums: dict[int, NDArray[np.float32]] = {}
        shares = area_shares(height, size[0])
        top = 0
        for band in self.bands():
            narrow = band.astype(np.float32)
            if size[1] != width:
                narrow = cv2.resize(narrow, (size[1], len(band)), interpolation=cv2.INTER_AREA)
            for row, own in enumerate(narrow, start=top):
                for target, share in shares[row]:
                    total = sums.setdefault(target, np.zeros_like(own))
                    total += np.float32(share) * own
                later = {target for target, _ in shares[row + 1]} if row + 1 < height else set()
                for target in sums.keys() - later:
                    result[target] = np.clip(np.rint(sums.pop(target)), 0, 255)
            top += len(band)
        return result


def area_shares(length: int, size: int) -> list[list[tuple[int, float]]]:
    """For each of `length` rows the rows of `size` <= length that it is part of, and its share of them.

    As OpenCV's computeResizeAreaTab (modules/imgproc/src/resize.cpp).
    """
    scale = length / size
    shares: list[list[tuple[int, float]]] = [[] for _ in range(length)]
    for target in range(size):
        first, last = target * scale, (target + 1) * scale
        width = min(scale, length - first)
        low, high = math.ceil(first), min(math.floor(last), length - 1)
        low = min(low, high)
        if low - first > _EDGE:
            shares[low - 1].append((target, (low - first) / width))
        for row in range(low, high):
            shares[row].append((target, 1 / width))
        if last - high > _EDGE:
            shares[high].append((target, min(last - high, 1.0, width) / width))
    return shares


def can_read_in_bands() -> bool:
    """Whether pyvips is installed."""
    try:
        _pyvips()
    except UserError:
        return False
    return True


def _pyvips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise UserError(
            f"images this large are read in bands by pyvips, which cannot be imported ({error})",
            "Install it: pip install 'segformer-spark[large]'",
        ) from error
    pyvips.cache_set_max(0)
    return pyvips
