"""Real photographs: a few steps on CamVid, through a reader of one class, as a new data set would be added."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformer_spark.data import registry
from segformer_spark.data.dataset import IGNORE_INDEX, ClassInfo, Sample
from segformer_spark.data.decode import read_image
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run

ROOT = os.environ.get("CAMVID_ROOT")
NAMES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


class CamVid:
    """`<split>.txt` lists images and index masks; label 11 is void."""

    classes = ClassInfo(tuple(NAMES), tuple((20 * i, 10 * i, 255 - 20 * i) for i in range(11)), None)
    groups: tuple[str, ...] = ()

    def __init__(self, root: Path, split: str) -> None:
        masks = sorted((root / f"{split}annot").glob("*.png"))[:12]
        self.pairs = [(next((root / split).glob(f"{mask.stem}.*")), mask) for mask in masks]

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        image, mask = self.pairs[index]
        labels = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
        assert labels is not None
        return Sample(read_image(image), np.where(labels == 11, IGNORE_INDEX, labels).astype(np.uint8))

    def sample_id(self, index: int) -> str:
        return self.pairs[index][1].stem

    def group(self, index: int) -> int:
        return 0


def train(group: Group, root: str, path: str) -> list[float]:
    registry.DATASETS["camvid_test"] = "tests.training.test_camvid:CamVid"
    settings = ("data.dataset=camvid_test", "data.image_size=96", "training.selection_metric=miou", "training.epochs=8")
    return short_run(group, root, path, settings)


@pytest.mark.skipif(ROOT is None, reason="CAMVID_ROOT is not set")
def test_a_few_steps_on_real_images_learn(tmp_path: Path) -> None:
    losses = run_on_ranks(2, train, str(ROOT), str(tmp_path / "run"))[0]
    assert len(losses) == 24
    assert np.isfinite(losses).all()
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])
    history = (tmp_path / "run" / "history.csv").read_text()
    assert "iou_bicyclist" in history
    assert "spark_score" not in history
