"""Writes a few images exactly as CamVid's SegNet split lies on disk, absolute list paths included."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 96, 72


def write_camvid(root: Path, *, num_train: int = 6, num_val: int = 3, suffix: str = ".png") -> None:
    """Blocky scenes with all 11 classes and void; image colours follow the classes, so that they can be learned."""
    rng = np.random.default_rng(11)
    palette = np.random.default_rng(0).integers(0, 255, (12, 3))
    for split, number in (("train", num_train), ("val", num_val)):
        lines = []
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(number):
            blocks = rng.integers(0, 12, (6, 8)).astype(np.uint8)
            mask = blocks.repeat(HEIGHT // 6, 0).repeat(WIDTH // 8, 1)
            image = np.clip(palette[mask] + rng.integers(-9, 9, (*mask.shape, 3)), 0, 255).astype(np.uint8)
            name = f"0001TP_{6690 + index:06d}" if split == "train" else f"0016E5_{7959 + index:05d}"
            cv2.imwrite(str(root / split / f"{name}{suffix}"), image)
            cv2.imwrite(str(root / f"{split}annot" / f"{name}.png"), mask)
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
