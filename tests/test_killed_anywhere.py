"""kill -9 before every single file operation: what stands is the state before or after, and the next start needs no
hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segformer_spark.checkpoint.export import ModelCard, export_model, load_model
from segformer_spark.checkpoint.names import step_of
from segformer_spark.checkpoint.store import CheckpointStore, StoredState, read, verify
from segformer_spark.config.load import load_config
from segformer_spark.data import cache_build
from segformer_spark.engine.launched import StepResult
from segformer_spark.evaluation.session import InferenceSettings
from segformer_spark.files.atomic import recover_folder
from segformer_spark.files.checksums import LEASE
from segformer_spark.models.segformer import SegFormer, portable_names
from segformer_spark.prediction.predict import PredictOptions, run_prediction
from segformer_spark.run.directory import RunDirectory, open_for_training, sweep_leftovers
from segformer_spark.run.lease import Owner, lease_results, lease_run
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.run.step_log import StepLog
from segformer_spark.submission.spark_format import check_prediction, write_prediction
from segformer_spark.training.sinks import FileSink, ValidationReport
from segformer_spark.training.throughput import IntervalReport
from tests.data.image_files import encode, picture, save
from tests.data.test_cache import build as build_cache_of
from tests.failpoints import kills
from tests.ranks import forked
from tests.sessions import group_of_one
from tests.soak import differences
from tests.tiny import export_tiny, tiny_segformer
from tests.training.short_run import short_run

STEPS = 3

some_or_all = pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.sweep)])


def stored(step: int) -> StoredState:
    value = {"w": torch.full((50,), float(step))}
    return StoredState(value, {"exp_avg": value}, {"step": step}, value)


def save_all(folder: Path) -> None:
    """What a run does with its checkpoints, from wherever it stands: resume, save, prune."""
    store = CheckpointStore(folder, keep=2)
    store.clean()
    newest = store.newest_intact()
    first = 0 if newest is None else step_of(newest)
    store.discard_after(first)
    for step in range(first + 1, STEPS + 1):
        store.save(step, stored(step))


def test_saving_and_pruning_checkpoints(tmp_path: Path) -> None:
    folder, number = tmp_path / "checkpoints", 0
    for number in kills(save_all, folder):
        store = CheckpointStore(folder, keep=2)
        before = [step_of(path) for path in store.committed()]
        for path in store.committed():
            verify(path)
            assert float(read(path).model["w"][0]) == step_of(path)
        save_all(folder)
        assert [step_of(path) for path in store.committed()][-2:] == [2, 3], f"operation {number}, with {before} there"
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        shutil.rmtree(folder)
    assert number > 40


def replace_checkpoint(folder: Path) -> None:
    """A step that is saved again, as after a fall back."""
    CheckpointStore(folder, keep=2).save(2, stored(2))


def test_replacing_a_checkpoint(tmp_path: Path) -> None:
    folder, number = tmp_path / "checkpoints", 0
    save_all(folder)
    for number in kills(replace_checkpoint, folder):
        store = CheckpointStore(folder, keep=2)
        store.clean()
        steps = [step_of(path) for path in store.committed()]
        assert {2, 3} >= {*steps} >= {3}, number
        for path in store.committed():
            verify(path)
        shutil.rmtree(folder)
        save_all(folder)
    assert number > 15


def begin(path: Path) -> None:
    """The start of a run, as far as files go."""
    run = open_for_training(path, resume=True, overwrite=False)
    with lease_run(path, 0, Owner.here({})):
        run.log.open("a").write("begun\n")
        sweep_leftovers(run)
        run.create(load_config(overrides=["experiment.notes=x"]))
        run.write_record({"status": "running"})
        log = MetricsLog(run.metrics)
        log.rewind(0, validated=False)
        log.append({"kind": "train", "step": 1, "loss": 0.5})


def test_the_start_of_a_run(tmp_path: Path) -> None:
    path, number = tmp_path / "run", 0
    for number in kills(begin, path):
        begin(path)
        run = RunDirectory(path)
        assert run.load_config().config.experiment.notes == "x", f"operation {number}"
        assert [row["step"] for row in MetricsLog(run.metrics).rows()] == [1]
        assert not [child.name for child in path.iterdir() if child.name.startswith(".")], f"operation {number}"
        shutil.rmtree(path)
    assert number > 12


CARD = ModelCard(
    *("spark", ("background", "body", "panels"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)), 0, (64, 64), {}, 1, 1, {}, "x")
)


def export(folder: Path, seed: int) -> None:
    recover_folder(folder / "best")
    model: SegFormer = tiny_segformer(CARD.class_names, seed=seed)
    names = portable_names(model)
    weights = {names[live]: value.clone() for live, value in model.state_dict().items()}
    export_model(model, weights, names, folder / "best", CARD)


def test_replacing_the_best_model(tmp_path: Path) -> None:
    number = 0
    export(tmp_path, 0)
    first = load_file(tmp_path / "best" / "model.safetensors")
    export(tmp_path, 1)
    second = load_file(tmp_path / "best" / "model.safetensors")
    name = "decode_head.classifier.weight"
    assert not torch.equal(first[name], second[name])
    export(tmp_path, 0)
    for number in kills(export, tmp_path, 1):
        recover_folder(tmp_path / "best")
        load_model(tmp_path / "best")
        found = load_file(tmp_path / "best" / "model.safetensors")[name]
        assert torch.equal(found, first[name]) or torch.equal(found, second[name]), f"operation {number}"
        export(tmp_path, 0)
    assert number > 15


def predict_all(folder: Path) -> None:
    """A folder of results: what is there and valid stays."""
    with lease_results(folder, Owner.here(dict(os.environ))):
        for number in range(3):
            path = folder / f"test_{number}_layer.npz"
            if not path.is_file() or check_prediction(path, (8, 9), tag="t") is not None:
                write_prediction(path, torch.ones(8, 9, dtype=torch.uint8).numpy(), "t")


def test_a_folder_of_results(tmp_path: Path) -> None:
    folder, number = tmp_path / "submission", 0
    for number in kills(predict_all, folder):
        predict_all(folder)
        assert [check_prediction(path, (8, 9), tag="t") for path in sorted(folder.glob("test_*.npz"))] == [None] * 3, (
            number
        )
        shutil.rmtree(folder)
    assert number > 10


def log_everything(path: Path) -> None:
    """What a resumed run does with its logs: rewind to the checkpoint, steps, validations, the table and the curves."""
    run = RunDirectory(path)
    sink = FileSink(run)
    sink.start(2, validated=True)
    for step in range(3, 6):
        sink.step(step, StepResult(1 / step, 0.5, True))
        sink.interval(interval(step))
        if step == 4:
            sink.flush()
            sink.validation(ValidationReport(step, 1, {"miou": 0.5}, 0.1, False, "miou"))
    sink.close()


def interval(step: int) -> IntervalReport:
    numbers = {"loss": 1 / step, "lr": 0.1, "grad_norm": 0.5, "images_per_s": 1.0, "images_per_s_per_device": 1.0}
    rest = {"memory_gib": 1.0, "skipped_steps": 0, "eta_seconds": 1.0, "lrs": {}}
    return IntervalReport(step=step, epoch=1, total_steps=5, num_steps=1, **numbers, **rest)  # type: ignore[arg-type]


@some_or_all
def test_the_logs_of_a_resumed_run(every: int, tmp_path: Path) -> None:
    """Of a run that had come to step 4 when it was killed, and goes on from step 2."""
    path, whole = tmp_path / "run", tmp_path / "whole"
    for folder in (path, whole):
        folder.mkdir()
        log, steps = MetricsLog(folder / "metrics.jsonl"), StepLog(folder / "steps.bin")
        for step in range(1, 5):
            log.append({"kind": "train", "step": step, "loss": 1 / step})
            steps.add(1 / step, 0.5)
        steps.flush()
    log_everything(whole)
    names = ("metrics.jsonl", "steps.bin", "history.csv")
    start = {name: (path / name).read_bytes() for name in names[:2]}
    number = 0
    for number in kills(log_everything, path, every=every):
        log_everything(path)
        for name in names:
            assert (path / name).read_bytes() == (whole / name).read_bytes(), f"operation {number}: {name}"
        assert not [child for child in path.iterdir() if child.name.endswith(".png") and child.stat().st_size == 0]
        for child in path.iterdir():
            child.unlink()
        for name, content in start.items():
            (path / name).write_bytes(content)
    assert number > 12


def build_small_cache(folder: Path, root: str) -> None:
    """In two shards; where the manifest lies is no part of it."""
    cache_build.SHARD_IMAGES, cache_build.LEFTOVER_SECONDS = 8, 0.0
    config = load_config(overrides=[f"data.root={root}", "data.image_size=48", "data.num_workers=0"]).config
    build_cache_of(config, folder, 48, "raw")


def test_a_cache(own_spark_root: Path, tmp_path: Path) -> None:
    root, parent, whole, number = str(own_spark_root), tmp_path / "cache", tmp_path / "whole", 0
    build_small_cache(whole, root)
    expected = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert len([name for name in expected if "shard" in name.name]) >= 2
    for number in kills(build_small_cache, parent, root):
        build_small_cache(parent, root)
        found = {path.relative_to(parent): path.read_bytes() for path in parent.rglob("*") if path.is_file()}
        assert found == expected, f"operation {number}"
        shutil.rmtree(parent)
    assert number > 12


def predict_photos(folder: Path, model: str, photos: str) -> None:
    with group_of_one() as group:
        run_prediction(
            PredictOptions(Path(model), [Path(photos)], folder, inference=InferenceSettings(keep_images=True)), group
        )


@some_or_all
def test_predictions(every: int, tmp_path: Path) -> None:
    model, photos = export_tiny(tmp_path / "model"), tmp_path / "photos"
    for index in range(2):
        save(photos / f"{index}.png", encode(picture(40, 61, index), "PNG"))
    folder, whole, number = tmp_path / "out", tmp_path / "whole", 0
    predict_photos(whole, str(model), str(photos))
    expected = contents(whole)
    assert any(name.endswith(".png") for name in expected)
    for number in kills(predict_photos, folder, str(model), str(photos), every=every):
        predict_photos(folder, str(model), str(photos))
        assert contents(folder) == expected, f"operation {number}"
        shutil.rmtree(folder)
    assert number > 12


def contents(folder: Path) -> dict[str, bytes]:
    """Of what has no times in it; the hold on the folder is no result."""
    files = [path for path in folder.rglob("*") if path.is_file() and LEASE not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix in (".png", ".csv")}


def train_for_real(folder: Path, root: str) -> None:
    """Six steps, three checkpoints, two validations, from wherever the run stands."""
    overrides = ("training.max_steps=6", "output.checkpoint_every_steps=2")
    with group_of_one() as group:
        short_run(group, root, str(folder), overrides, "auto")


@pytest.mark.sweep
def test_a_training(spark_root: Path, tmp_path: Path) -> None:
    """Killed at every fifth of its several hundred operations; one more start ends it like the one that was not."""
    folder, whole, number, count = tmp_path / "run", tmp_path / "whole", 0, 0
    forked(train_for_real, whole, str(spark_root)).join(60)
    for number in kills(train_for_real, folder, str(spark_root), every=5):
        again = forked(train_for_real, folder, str(spark_root))
        again.join(60)
        assert again.exitcode == 0, f"operation {number}"
        assert differences(folder, whole) == [], f"operation {number}"
        assert not [child.name for child in folder.iterdir() if child.name.startswith(".")], f"operation {number}"
        shutil.rmtree(folder)
        count += 1
    print(f"{count} kills among {number} operations")
    assert number > 200
