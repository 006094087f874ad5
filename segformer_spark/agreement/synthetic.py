"""A synthetic set of pairs and ratings, for tests and for trying `agreement`: nobody was asked."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from segformer_spark.files.atomic import write_csv

RATINGS = "ratings.csv"
_RATERS_PER_PAIR = 20


def write_synthetic(folder: Path, *, num_pairs: int = 24, size: int = 128, seed: int = 0) -> Path:
    """Grey ellipses that grow or shrink by up to 90 %, and ratings that mostly follow; returns the ratings file."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_pairs):
        base, change = f"pair_{number:02d}", float(rng.uniform(-0.9, 0.9))
        center = rng.integers(size // 3, size - size // 3, 2)
        axes = rng.uniform(size / 10, size / 5, 2)
        color, angle = rng.integers(60, 255, 3), float(rng.uniform(0, 180))
        for suffix, factor in (("init", 1.0), ("out", math.sqrt(1 + change))):
            image = np.zeros((size, size, 3), np.uint8)
            scaled = tuple(max(5, round(float(axis) * factor)) for axis in axes)
            cv2.ellipse(image, center.tolist(), scaled, angle, 0, 360, color.tolist(), cv2.FILLED)
            cv2.imwrite(str(folder / f"{base}_{suffix}.png"), image)
        saw = 1 / (1 + math.exp(-8 * (abs(change) - 0.4)))
        answers = rng.random(_RATERS_PER_PAIR) < saw
        kind = "grows" if change > 0 else "shrinks"
        rows += [{"base": base, "type": kind, "answer": "different" if answer else "same"} for answer in answers]
    ratings = folder / RATINGS
    write_csv(ratings, ["base", "type", "answer"], rows)
    return ratings
