"""Another data set through the same trainer: rendered blocks in CamVid's layout, and real photographs."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.readers.camvid_fixture import write_camvid
from tests.ranks import run_on_ranks
from tests.training.short_run import short_run

ROOT = os.environ.get("CAMVID_ROOT")
CAMVID = (
    "data.dataset=camvid",
    "training.selection_metric=miou",
    "inference.resize=native",
    "augmentation.crop.mode=variable",
    "augmentation.crop.max_class_share=0.75",
)


def history(run: Path) -> dict[str, str]:
    return list(csv.DictReader((run / "history.csv").open()))[-1]


def test_camvid_trains_with_crops_and_weights_from_its_manifest(tmp_path: Path) -> None:
    from segformer_spark.cli import main

    root = tmp_path / "camvid"
    write_camvid(root, num_train=8)
    with pytest.raises(SystemExit) as exit_:
        main(["data", "check", "--dataset", "camvid", "--root", str(root), "--num-workers", "0"])
    assert exit_.value.code == 0
    settings = (*CAMVID, "training.loss.class_weights=auto", "training.epochs=2", "data.image_size=64")
    losses = run_on_ranks(2, short_run, str(root), str(tmp_path / "run"), settings)[0]
    assert np.isfinite(losses).all()
    last = history(tmp_path / "run")
    assert float(last["miou_void_as_error"]) <= float(last["miou"])
    assert "iou_bicyclist" in last
    assert "spark_score" not in last
    (root / "train.txt").write_text("\n".join((root / "train.txt").read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(
        AssertionError, match="has 8 images, the data set has 7; run `segformer-spark data check` again"
    ):
        run_on_ranks(1, short_run, str(root), str(tmp_path / "other"), settings)


@pytest.mark.sweep
@pytest.mark.skipif(ROOT is None, reason="CAMVID_ROOT is not set")
def test_a_few_steps_on_real_images_learn(tmp_path: Path) -> None:
    settings = (*CAMVID, "data.image_size=96", "training.max_steps=40", "data.val_subset=4", "training.epochs=1")
    settings += ("training.scheduler.warmup_epochs=0.0", "model.variant=b0")  # the smallest learns too slowly
    losses = run_on_ranks(2, short_run, str(ROOT), str(tmp_path / "run"), settings)[0]
    assert len(losses) == 40
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:4])
