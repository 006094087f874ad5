"""Three commands, from a folder as an ordinary person has it to masks of new images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import PIL.Image

from tests.data.own_folder import ellipse, ordinary_folder, save
from tests.tiny import TINY_SETTINGS
from tests.verbs import run_verb


def test_three_commands(tmp_path: Path) -> None:
    ordinary_folder(tmp_path / "photos", 12)
    for index in range(3):
        save(ellipse(100 + index)[0], tmp_path / "new_photos" / f"{index}.jpg")
    done = run_verb("data", "init", "photos/", "--name", "leaves", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 images with masks: 10 train, 2 val" in done.stdout
    # The command is the user's; a smaller network, smaller images and a rate that suits both keep the suite short.
    faster = (
        *TINY_SETTINGS,
        "training.epochs=24",
        "training.optimizer.lr=6e-3",
        "data.num_workers=0",
        "data.image_size=128",
    )
    done = run_verb("train", "--config", "leaves.yaml", "--set", *faster, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    done = run_verb("predict", "runs/leaves", "new_photos/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "runs" / "leaves" / "predictions"
    for index in range(3):
        found = np.asarray(PIL.Image.open(results / "ids" / f"{index}.png"))
        truth = ellipse(100 + index)[1]
        overlap, union = ((found == 1) & truth).sum(), ((found == 1) | truth).sum()
        assert overlap / union > 0.5
    with (results / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == ["0", "1", "2"]
    assert 0 < float(rows[0]["share_leaves"]) < 0.5
