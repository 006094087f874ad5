"""Folders of images and masks as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from tests.data.image_files import ORIENTATION

SIZE = (48, 64)
"""(height, width) of the images."""


def ellipse(index: int, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A noisy picture with a green ellipse, and where that is."""
    rng = np.random.default_rng(index)
    height, width = size
    picture = PIL.Image.fromarray(rng.integers(90, 150, (height, width, 3), dtype=np.uint8))
    mask = PIL.Image.new("1", (width, height))
    x, y = (int(rng.integers(side // 4, 3 * side // 4)) for side in (width, height))
    radius = int(rng.integers(min(size) // 8, min(size) // 4))
    box = [x - radius, y - radius, x + radius, y + radius]
    PIL.ImageDraw.Draw(picture).ellipse(box, fill=(40, 170, 50))
    PIL.ImageDraw.Draw(mask).ellipse(box, fill=1)
    return np.asarray(picture), np.asarray(mask)


def save(pixels: NDArray[Any], path: Path, orientation: int = 1, **options: Any) -> Path:
    """An image file of the kind that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if orientation != 1:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def ordinary_folder(root: Path, number: int = 8) -> Path:
    """Photographs of a phone, with masks of 0 and 255 in a folder beside them."""
    for index in range(number):
        picture, mask = ellipse(index)
        suffix = (".JPG", ".jpeg", ".png")[index % 3]
        save(picture, root / f"IMG {index:03d}{suffix}")
        save((mask * 255).astype(np.uint8), root / "masks" / f"IMG {index:03d}_mask.png")
    return root


def index_folder(root: Path, masks: list[NDArray[Any]], palette: list[int] | None = None) -> Path:
    """images/ and masks/ with these class numbers."""
    for index, mask in enumerate(masks):
        save(ellipse(index, mask.shape)[0], root / "images" / f"{index}.jpg")  # type: ignore[arg-type]
        picture = PIL.Image.fromarray(mask)
        if palette is not None:
            picture.putpalette(palette)
        path = root / "masks" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return root


def color_folder(root: Path, masks: list[NDArray[np.uint8]], suffix: str = ".png") -> Path:
    """images/ and masks/ with these colours."""
    for index, mask in enumerate(masks):
        save(ellipse(index, mask.shape[:2])[0], root / "images" / f"{index}.jpg")  # type: ignore[arg-type]
        save(mask, root / "masks" / f"{index}{suffix}")
    return root
