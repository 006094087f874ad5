"""Writes a rendered set exactly as SPARK lies on disk (data/readers/spark.py), with an unlabelled test folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from segformer_spark.data.dataset import Image
from segformer_spark.data.demo.render import RenderedImage, render
from segformer_spark.data.readers.spark import CSV_COLUMNS, SPACECRAFT, SPARK_CLASSES, TEST_FOLDER
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import atomic_folder, write_csv

_JPEG_QUALITY = 92
_SPLITS = ("train", "val", "test")


def write_demo_set(
    root: Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    size: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> None:
    """Render the set into `root`. The same arguments give the same bytes.

    Args:
        root: folder to create; must be absent or empty.
        size: side of the square images in pixels.
        progress: called with (split, images done, images in the split).

    Raises:
        DataError: `root` holds files already.
        UserError: it cannot be written; nothing is left behind.
    """
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root}: the folder is not empty; remove it or choose another one")
    with atomic_folder(root) as temporary:
        _write_splits(temporary, (num_train, num_val, num_test), size, seed, progress)


def _write_splits(
    root: Path, numbers: tuple[int, int, int], size: int, seed: int, progress: Callable[[str, int, int], None]
) -> None:
    for split_number, (split, number) in enumerate(zip(_SPLITS, numbers, strict=True)):
        rows = []
        for index in range(number):
            rng = np.random.default_rng([seed, split_number, index])
            spacecraft = SPACECRAFT[index % len(SPACECRAFT)]
            rendered = render(spacecraft, size, rng)
            if split == "test":
                _write_jpeg(root / TEST_FOLDER / f"test_{index:05d}_img.jpg", rendered.image)
            else:
                rows.append(_write_labelled(root, split, index, spacecraft, rendered))
            progress(split, index + 1, number)
        if split != "test":
            write_csv(root / f"{split}.csv", CSV_COLUMNS, rows)


def _write_labelled(root: Path, split: str, index: int, spacecraft: str, rendered: RenderedImage) -> dict[str, str]:
    # Numbers restart in each class folder, as in the real set.
    number = index // len(SPACECRAFT)
    image_name, mask_name = f"image_{number:05d}_img.jpg", f"image_{number:05d}_layer.jpg"
    palette = np.asarray(SPARK_CLASSES.colors, np.uint8)
    _write_jpeg(root / "images" / spacecraft / split / image_name, rendered.image)
    _write_jpeg(root / "mask" / spacecraft / split / mask_name, palette[rendered.mask])
    return dict(zip(CSV_COLUMNS, (image_name, mask_name, spacecraft, str(rendered.box)), strict=True))


def _write_jpeg(path: Path, pixels: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())
