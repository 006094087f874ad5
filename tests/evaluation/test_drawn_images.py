"""Pictures of an evaluation: which images are drawn, each predicted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.config.stored import load_stored_config
from segformer_spark.evaluation import drawn_images
from segformer_spark.evaluation.drawn_images import draw_images
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.evaluation.result_folder import read_counted
from segformer_spark.evaluation.session import InferenceSettings, Session
from tests.sessions import group_of_one


def test_every_picture_of_one_pass(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = load_stored_config(trained_run / "config.yaml")
    folder = tmp_path / "val"
    with group_of_one() as group:
        run_evaluation(resolved, EvaluateOptions(trained_run, "val", folder, num_worst=0), group)
        assert not [path.name for path in folder.rglob("*.png") if path.parent.name != "figures"]
        counts, of = read_counted(folder)
        session = Session.open(trained_run, InferenceSettings(), group, resolved.config.data, "val")
        asked: list[int] = []
        original = drawn_images.predicted_images

        def counted(predictor: Any, dataset: Any, loading: Any, indices: list[int]) -> Any:
            asked.extend(indices)
            return original(predictor, dataset, loading, indices)

        monkeypatch.setattr(drawn_images, "predicted_images", counted)
        suspects = {"missing_points": {"suspected_labels": [{"image": of.names[at], "pixels": 9} for at in (3, 1)]}}
        options: dict[str, Any] = {"num_worst": 2, "num_examples": 1}
        draw_images(session, range(len(counts)), counts, of, suspects, folder, **options)
        assert sorted(asked) == sorted(set(asked)), "no image is predicted twice"
        index = json.loads((folder / "gallery.json").read_text())
        assert index["groups"]["suspected label errors"] == [3, 1]
        for at in (3, 1):
            assert index["images"][str(at)]["name"] == of.names[at]
            assert (folder / "gallery" / f"{index['images'][str(at)]['file']}-truth.png").is_file()
        assert {int(at) for at in index["images"]} <= {*asked}
        assert sorted(path.name for path in (folder / "examples").iterdir()) == [
            *("best.png", "first.png", "median.png", "worst.png")
        ]
        worst = [of.names[at] for at in index["groups"]["worst"]]
        assert [path.stem[3:] for path in sorted((folder / "worst").iterdir())] == worst
        draw_images(session, range(len(counts)), counts, of, suspects, folder, num_worst=0, num_examples=0)
        assert not [path.name for path in folder.rglob("*.png") if path.parent.name != "figures"]
