"""kill -9 before every single file operation: what stands is the state before or after, and the next start needs no
hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from segformer_spark.checkpoint.export import ModelCard, export_model, load_model
from segformer_spark.checkpoint.names import step_of
from segformer_spark.checkpoint.store import CheckpointStore, StoredState, read, verify
from segformer_spark.config.load import load_config
from segformer_spark.models.segformer import SegFormer, portable_names
from segformer_spark.run.atomic import recover_folder
from segformer_spark.run.directory import RunDirectory, open_for_training, sweep_leftovers
from segformer_spark.run.lease import Owner, lease_results, lease_run
from segformer_spark.run.metrics_log import MetricsLog
from segformer_spark.submission.spark_format import check_prediction, write_prediction
from tests.failpoints import kills
from tests.tiny import tiny_segformer

STEPS = 3


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
