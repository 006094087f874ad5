"""What a run leaves in TensorBoard, read back from its event files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segformer_spark.data.readers.spark import SparkDataset
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.training.sinks import FileSink, Sink, ValidationReport
from segformer_spark.training.tensorboard import TensorBoardSink
from segformer_spark.training.throughput import IntervalReport
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


def rewritten(folder: Path, step: int, *, validated: bool) -> dict[str, list[tuple[int, float]]]:
    """Curves of an attempt of four steps that validated step 2, and of one that continues from `step`."""
    report = IntervalReport(1, 1, 9, 1, 0.5, 1e-3, {"head": 1e-2}, None, 1.0, 1.0, 1.0, 0, 1.0)
    log = MetricsLog(folder / "metrics.jsonl")
    files = RunDirectory(folder)
    for attempt in (1, 2):
        sinks: list[Sink] = [FileSink(files), TensorBoardSink(folder / "tensorboard", log)]
        for sink in sinks:
            sink.start(0 if attempt == 1 else step, validated=validated if attempt == 2 else False)
            for number in range(1, 5) if attempt == 1 else ():
                sink.interval(replace(report, step=number, loss=float(number)))
                if number == 2:
                    sink.validation(ValidationReport(2, 1, {"miou": 0.5}, 1.0, is_best=True, metric="miou"))
            sink.close()
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = ("train/loss", "lr/head", "validation/miou")
    return {t: [(e.step, e.value) for e in found.Scalars(t)] for t in tags if t in found.Tags()["scalars"]}


def test_an_attempt_that_was_killed_before_its_first_checkpoint_is_forgotten(tmp_path: Path) -> None:
    assert not any(rewritten(tmp_path, 0, validated=False).values())


@pytest.mark.parametrize("validated", [True, False])
def test_a_validation_at_the_checkpoints_own_step_is_kept_only_if_it_is_done(tmp_path: Path, validated: bool) -> None:
    curves = rewritten(tmp_path, 2, validated=validated)
    assert curves["train/loss"] == [(1, 1.0), (2, 2.0)]
    assert [step for step, _ in curves["lr/head"]] == [1, 2]
    assert curves.get("validation/miou", []) == ([(2, 0.5)] if validated else [])


def test_settings_beside_the_best_score(events: EventAccumulator) -> None:
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("best/")] == ["best/spark_score"]
    scores = {event.step: event.value for event in events.Scalars("validation/spark_score")}
    (best,) = events.Scalars("best/spark_score")
    assert best.value == max(scores.values()) == scores[best.step]
    assert best.step > 0
