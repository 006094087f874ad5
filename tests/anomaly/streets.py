"""A rendered set in StreetHazards' layout: a road with cars, and in the test split something that is neither."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

_ROAD, _CAR, _SKY, _STRANGE = 8, 11, 10, 14
_PARTS = {"training": ("train", 8), "validation": ("train", 4), "test": ("test", 4)}


def write_streets(root: Path, size: tuple[int, int] = (48, 80)) -> None:
    """Labels as on disk, 1 to 14; test images 0 to 2 hold a strange object, image 3 none."""
    rng = np.random.default_rng(0)
    height, width = size
    for folder, (part, number) in _PARTS.items():
        entries = []
        for index in range(number):
            image, mask = np.full((height, width, 3), 180, np.uint8), np.full((height, width), _SKY, np.uint8)
            image[height // 2 :], mask[height // 2 :] = 60, _ROAD
            column = int(rng.integers(0, width - 20))
            image[height // 2 : height // 2 + 10, column : column + 16] = (20, 20, 200)
            mask[height // 2 : height // 2 + 10, column : column + 16] = _CAR
            if folder == "test" and index < 3:
                place = (int(rng.integers(10, width - 10)), int(rng.integers(10, height - 10)))
                cv2.circle(image, place, 6, (40, 220, 60), cv2.FILLED)
                cv2.circle(mask, place, 6, _STRANGE, cv2.FILLED)
            noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
            entry = {}
            for key, kind, pixels in (("fpath_img", "images", noisy), ("fpath_segm", "annotations", mask)):
                entry[key] = f"{kind}/{folder}/t1/{index}.png"
                (root / part / entry[key]).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / part / entry[key]), pixels)
            entries.append(entry)
        (root / part / f"{folder}.odgt").write_text(json.dumps(entries))
