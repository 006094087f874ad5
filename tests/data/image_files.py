"""Image files with chosen headers, for tests."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

ORIENTATION = 274


def picture(height: int = 12, width: int = 19, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture without symmetry."""
    rng = np.random.default_rng(seed)
    small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.BICUBIC))


def encode(pixels: NDArray[Any], kind: str, orientation: int = 1, **options: Any) -> bytes:
    """An image file, written by Pillow."""
    stream = io.BytesIO()
    if orientation != 1:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    PIL.Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def save(path: Path, content: bytes) -> Path:
    """Write a file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey_png(values: NDArray[Any], bits: int, extra: bytes = b"", *, behind: bytes = b"", share: float = 1.0) -> bytes:
    """A grey PNG of `bits` per sample, with chunks before and behind the pixels, and only a share of these."""
    rows = []
    for row in values:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(b"\0" + int(text, 2).to_bytes(len(text) // 8, "big"))
    height, width = values.shape
    packed = zlib.compress(b"".join(rows))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
            extra,
            chunk(b"IDAT", packed[: int(len(packed) * share)]),
            behind,
            chunk(b"IEND", b""),
        ]
    )
