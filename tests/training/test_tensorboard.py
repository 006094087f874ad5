"""What a run leaves in TensorBoard, read back from its event files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segformer_spark.data.readers.spark import SparkDataset
from tests.conftest import SIDE
from tests.ranks import run_on_ranks
from tests.training.short_run import short_run


@pytest.fixture(scope="module")
def events(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    path = tmp_path_factory.mktemp("tensorboard") / "run"
    settings = ("output.tensorboard=true", "output.tensorboard_images=2", "training.optimizer.head_lr_multiplier=10.0")
    run_on_ranks(2, short_run, str(spark_root), str(path), settings)
    found = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_curves(events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/images_per_s", "train/memory_gib", "train/grad_norm"} <= tags
    assert {"iou/background", "iou/body", "iou/panels", "validation/spark_score", "validation/miou"} <= tags
    rates = {name: [event.value for event in events.Scalars(f"lr/{name}")] for name in ("encoder", "head")}
    assert len(rates["head"]) == 9
    assert rates["head"] == pytest.approx([10 * rate for rate in rates["encoder"]], rel=1e-5)


def test_the_same_images_at_every_validation(events: EventAccumulator, spark_root: Path) -> None:
    pictures = [tag for tag in events.Tags()["images"] if tag.startswith("predictions/")]
    assert len(pictures) == 2
    for tag in [*pictures, "validation/confusion"]:
        assert [event.step for event in events.Images(tag)] == [3, 6, 9]
    dataset = SparkDataset(spark_root, "val")
    for index in (0, len(dataset) - 1):
        tag = f"predictions/{dataset.sample_id(index)}"
        encoded = np.frombuffer(events.Images(tag)[-1].encoded_image_string, np.uint8)
        panel = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(panel[44:, :SIDE], dataset.load(index).image)


def test_settings_beside_the_best_score(events: EventAccumulator) -> None:
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("best/")] == ["best/spark_score"]
