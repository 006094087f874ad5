"""PNG files, written row by row: pictures larger than memory, and the same bytes for the same pixels.

W3C, Portable Network Graphics, third edition: chunks in 5 and 11, filter Up in 9.2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from segformer_spark.data.dataset import Color
from segformer_spark.files.atomic import atomic_file
from segformer_spark.files.regular_file import open_regular

_MOST_TEXT = 2**20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_UP = 2
_LEVEL = 6
_ORIENTATION = 274


class PngWriter:
    """An 8-bit PNG whose rows come from top to bottom; a context manager that ends the file.

    Args:
        size: (height, width).
        bands: 1 (grey, or indices into the palette) or 3 (RGB).
        palette: colours of the indices 0, 1, ...
        orientation: EXIF tag 274 to store.
        text: {keyword of Latin-1: text}, readable before any pixel.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: tuple[int, int],
        bands: int = 1,
        *,
        palette: Sequence[Color] = (),
        orientation: int = 1,
        text: Mapping[str, str] | None = None,
    ) -> None:
        height, width = size
        self._stream, self._left = stream, height
        self._row = np.zeros(width * bands, np.uint8)
        self._compress = zlib.compressobj(_LEVEL)
        kind = _PALETTE if palette else {1: _GREY, 3: _RGB}[bands]
        stream.write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        if palette:
            self._chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes())
        if orientation != 1:
            exif = PIL.Image.Exif()
            exif[_ORIENTATION] = orientation
            self._chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        for keyword, value in (text or {}).items():
            self._chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode())

    def write(self, rows: NDArray[np.uint8]) -> None:
        """The next rows, (h, W) or (h, W, 3)."""
        flat = rows.reshape(len(rows), -1)
        above = np.concatenate([self._row[None], flat[:-1]])
        filtered = np.empty((len(flat), flat.shape[1] + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(flat, above, out=filtered[:, 1:])
        self._row = flat[-1].copy()
        self._left -= len(flat)
        data = self._compress.compress(filtered.tobytes())
        if data:
            self._chunk(b"IDAT", data)

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            assert self._left == 0, f"{self._left} rows are missing"
            self._chunk(b"IDAT", self._compress.flush())
            self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, data: bytes) -> None:
        self._stream.write(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        )


def write_png(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    palette: Sequence[Color] = (),
    orientation: int = 1,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write (H, W) grey values or palette indices, or (H, W, 3) RGB, atomically."""
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    size = (pixels.shape[0], pixels.shape[1])
    with (
        atomic_file(path) as stream,
        PngWriter(stream, size, bands, palette=palette, orientation=orientation, text=text) as png,
    ):
        png.write(np.ascontiguousarray(pixels))


def read_text_chunk(path: Path, keyword: str) -> str | None:
    """The text that `PngWriter` stored under a keyword; None where there is none, or the file is no PNG."""
    wanted = keyword.encode("latin-1") + b"\0\0\0\0\0"
    with open_regular(path) as stream:
        if stream.read(8) != _SIGNATURE:
            return None
        while len(header := stream.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name in (b"IDAT", b"IEND"):
                return None
            if length > _MOST_TEXT:
                return None
            data = stream.read(length)
            stream.read(4)
            if name == b"iTXt" and data.startswith(wanted):
                return data.removeprefix(wanted).decode(errors="replace")
    return None
