"""Whole short trainings: what they leave behind, and what stops them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import confusion_matrix
from torch.nn.functional import interpolate

from segformer_spark.checkpoint.export import load_model
from segformer_spark.config.load import load_config
from segformer_spark.data.dataset import IGNORE_INDEX, Sample, fixed_subset
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.transforms import image_to_tensor, normalize_images
from segformer_spark.errors import CheckpointError, ConfigError, DataError, UserError
from segformer_spark.losses.build import build_loss
from segformer_spark.run.directory import RunDirectory
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run


def test_the_run_directory_explains_itself(trained_run: Path) -> None:
    run = RunDirectory(trained_run)
    for path in (run.config, run.params_yaml, run.params_json, run.metrics, run.history, run.curves, run.log):
        assert path.stat().st_size > 0, path
    for folder in (run.best, run.final):
        assert (folder / "model.safetensors").is_file()
    assert "training_params.yaml" in (trained_run / "README.txt").read_text()
    assert run.load_config().config == load_config(run.config).config


def test_the_record(trained_run: Path) -> None:
    record = yaml.safe_load((trained_run / "training_params.yaml").read_text())
    assert record["status"] == "completed"
    assert record["steps"] == record["updates"] == 9
    assert len(record["seconds_per_epoch"]) == 3
    assert record["started"] <= record["ended"]
    assert record["runtime"]["world_size"] == 1
    assert record["provenance"]["training.epochs"] == "--set training.epochs"
    assert record["hardware"][0]["cpu_cores"] >= 1
    assert any(package.startswith("deepspeed==") for package in record["software"]["packages"])
    assert record["best"]["metric"] == "spark_score"
    assert str(Path.home()) not in (trained_run / "training_params.yaml").read_text()


def test_metrics_and_history(trained_run: Path) -> None:
    rows = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 10))
    assert {"loss", "lr", "grad_norm", "images_per_s", "images_per_s_per_device", "memory_gib"} <= train[0].keys()
    with (trained_run / "history.csv").open() as stream:
        history = list(csv.DictReader(stream))
    assert [row["step"] for row in history] == ["3", "6", "9"]
    assert {"spark_score", "miou", "iou_body", "train_loss", "val_loss"} <= history[0].keys()


def test_losses_and_scores_on_both_sets_are_followed(spark_root: Path, tmp_path: Path) -> None:
    """val_loss is the mean over the images of the training loss of each, enlarged to its labels in fp64."""
    settings = (
        "training.validation.train_subset=4",
        "training.epochs=1",
        "training.loss.class_weights=[1.0, 2.0, 3.0]",
    )
    run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "run"), settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "validation"]
    model, card = load_model(tmp_path / "run" / "best")
    config = load_config(tmp_path / "run" / "config.yaml").config
    train_set, val_set = (open_dataset(config.data, split) for split in ("train", "val"))
    loss = build_loss(config.training.loss, 3, IGNORE_INDEX).double()

    def enlarged(sample: Sample) -> torch.Tensor:
        with torch.no_grad():
            logits = model(normalize_images(image_to_tensor(card.view().whole(sample.image))[None])).double()
        return interpolate(logits, sample.mask.shape, mode="bilinear", align_corners=False)

    samples = [val_set.load(index) for index in range(len(val_set))]
    losses = [float(loss(enlarged(one), torch.from_numpy(one.mask)[None])) for one in samples]
    assert row["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    subset = fixed_subset(train_set, 4, config.experiment.seed)
    matrix = np.zeros((3, 3))
    for sample in (subset.load(index) for index in range(4)):
        ids = enlarged(sample).argmax(1)[0]
        matrix += confusion_matrix(sample.mask.ravel(), ids.numpy().ravel(), labels=range(3))
    ious = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert row["train_miou"] == pytest.approx(ious.mean(), abs=1e-4)


def test_the_log_says_what_runs_and_what_comes_next(trained_run: Path) -> None:
    text = (trained_run / "log.txt").read_text()
    assert "SegFormer-CUSTOM from none, 64 px, fp32, ZeRO-1 on 1 x cpu" in text
    assert "4 (micro-batch) x 1 (accumulation) x 1 (world) = 4 images per step; 9 steps" in text
    assert "step 9/9  epoch 3" in text
    assert "next: segformer-spark evaluate" in text


def test_best_holds_the_best_validation(trained_run: Path) -> None:
    card = json.loads((trained_run / "best" / "segformer_spark.json").read_text())
    rows = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    scores = [(row["spark_score"], -row["step"]) for row in rows if row["kind"] == "validation"]
    assert (card["metrics"]["spark_score"], -card["step"]) == max(scores)


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.sweep), 3])
def test_validation_does_not_depend_on_ranks(spark_root: Path, trained_run: Path, tmp_path: Path, world: int) -> None:
    """One optimizer step of a vanishing rate, then validation: the same counts over any number of ranks."""

    def metrics(path: Path) -> dict[str, Any]:
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return {k: v for k, v in rows[0].items() if k not in ("seconds", "kind")}

    settings = ("training.validation.at_start=true", "training.max_steps=1", "training.scheduler.warmup_steps=0")
    settings += ("training.global_batch_size=6", f"model.pretrained={trained_run / 'best'}")
    paths = []
    for ranks in (1, world):
        paths.append(tmp_path / str(ranks))
        run_on_ranks(
            ranks, short_run, str(spark_root), str(paths[-1]), (*settings, f"training.batch_size={6 // ranks}")
        )
    assert metrics(paths[0]) == metrics(paths[1])


def test_early_stopping(spark_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = ("training.early_stopping.patience=2", "training.early_stopping.min_delta=2.0", "training.epochs=50")
    losses = run_on_ranks(2, short_run, str(spark_root), str(path), settings)[0]
    assert len(losses) == 9, "the first validation is the best, two more without improvement"
    assert json.loads((path / "training_params.json").read_text())["status"] == "stopped early"
    assert (path / "final" / "model.safetensors").is_file()


def test_validation_by_steps_on_a_subset(spark_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = ("training.validation.every_steps=2", "training.validation.every_epochs=null", "data.val_subset=3")
    run_on_ranks(1, short_run, str(spark_root), str(path), (*settings, "training.max_steps=5"))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [2, 4, 5], "and once at the end"


def test_tensorboard_has_the_same_scalars(spark_root: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "run"
    settings = ("output.tensorboard=true", "training.max_steps=3")
    run_on_ranks(1, short_run, str(spark_root), str(path), settings)
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [(event.step, pytest.approx(event.value)) for event in events.Scalars("train/loss")]
    assert losses == [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
    assert {"train/lr", "train/grad_norm", "validation/spark_score", "iou/body"} <= {*events.Tags()["scalars"]}


def fails(group: Group, *arguments: Any) -> tuple[str, str]:
    try:
        short_run(group, *arguments)
    except UserError as error:
        return type(error).__name__, str(error)
    return "", "no error"


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (("data.root=/no/such",), DataError, "there is no such folder"),
        (("data.val_split=dev",), DataError, "there is no such split"),
        (("training.global_batch_size=5",), ConfigError, "not a multiple"),
        (("training.batch_size=40", "training.global_batch_size=null"), ConfigError, "12 images"),
        (("model.num_classes=5",), ConfigError, "the data set spark has 3"),
        (("training.precision=fp16",), ConfigError, "fp16 needs a GPU"),
        (("training.loss.class_weights=[1.0, 2.0]",), ConfigError, "2 entries"),
        (("training.selection_metric=mIoU",), ConfigError, "no metric 'mIoU'"),
        (
            ("model.variant=b0", "model.pretrained=ade20k", "model.weights_dir=/no/such"),
            CheckpointError,
            "weights fetch",
        ),
        (("deepspeed.config=/no/such.json",), ConfigError, "cannot be read"),
    ],
)
def test_mistakes_stop_a_run_with_a_clear_error(
    spark_root: Path, tmp_path: Path, overrides: tuple[str, ...], kind: type[UserError], message: str
) -> None:
    path = tmp_path / "run"
    name, text = run_on_ranks(1, fails, str(spark_root), str(path), overrides)[0]
    assert name == kind.__name__
    assert message in text
    assert not path.exists(), "nothing is left behind"


def fails_and_leaves(group: Group, *arguments: Any) -> tuple[str, int]:
    """The message, and how many loader processes are left when it has been handled."""
    import multiprocessing

    _, text = fails(group, *arguments)
    return text, len(multiprocessing.active_children())


def test_a_damaged_image_is_named_on_every_worker_setting(own_spark_root: Path, tmp_path: Path) -> None:
    image = own_spark_root / "images" / "Soho" / "train" / "image_00000_img.jpg"
    image.write_bytes(image.read_bytes()[:500])
    for workers in (0, 1):
        overrides = (f"data.num_workers={workers}",)
        text, left = run_on_ranks(1, fails_and_leaves, str(own_spark_root), str(tmp_path / str(workers)), overrides)[0]
        assert "Soho/train/image_00000_img.jpg: the file is truncated" in text
        assert "Traceback" not in text
        assert left == 0


def test_a_damaged_image_on_one_rank_ends_all_with_its_name(own_spark_root: Path, tmp_path: Path) -> None:
    """In training and in validation; the other ranks must not be left in a collective."""
    for split, folder in (("train", "Cheops"), ("val", "Cheops")):
        image = own_spark_root / "images" / folder / split / "image_00000_img.jpg"
        good = image.read_bytes()
        image.write_bytes(good[:500])
        path = tmp_path / split
        for kind, text in run_on_ranks(2, fails, str(own_spark_root), str(path)):
            assert kind == "DataError"
            assert f"Cheops/{split}/image_00000_img.jpg: the file is truncated" in text
        record = json.loads((path / "training_params.json").read_text())
        assert record["status"] == "failed"
        assert "is truncated" in record["error"]
        image.write_bytes(good)


def test_an_existing_run_and_a_changed_configuration_are_refused(
    spark_root: Path, trained_run: Path, tmp_path: Path
) -> None:
    before = (trained_run / "config.yaml").read_text()
    _, text = run_on_ranks(1, fails, str(spark_root), str(trained_run))[0]
    assert "this run exists already" in text
    _, text = run_on_ranks(1, fails, str(spark_root), str(trained_run), ("training.optimizer.lr=2e-3",), "auto")[0]
    assert "training.optimizer.lr was 0.001, now 0.002" in text
    assert (trained_run / "config.yaml").read_text() == before


def test_a_missing_checkpoint_is_an_error(spark_root: Path, trained_run: Path) -> None:
    _, text = run_on_ranks(1, fails, str(spark_root), str(trained_run), (), "no/such/step")[0]
    assert "there is no such checkpoint folder" in text


def full_disk(group: Group, root: str, path: str, limit: int) -> tuple[str, str]:
    """No file may grow beyond `limit` bytes; the model has 320 kB, its moments twice as many. A checkpoint that cannot
    be written ends the run when it was the last."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        return fails(group, root, path, ("model.custom.decoder_size=128",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("limit", "file"), [(400_000, "checkpoints"), (200_000, "best"), (300, "config.yaml")])
def test_a_full_disk_ends_all_ranks_with_the_reason(spark_root: Path, tmp_path: Path, limit: int, file: str) -> None:
    path = tmp_path / "run"
    for kind, text in run_on_ranks(2, full_disk, str(spark_root), str(path), limit):
        assert kind == "UserError"
        assert "cannot be written: File too large" in text or "I/O error: File too large" in text
        assert file in text
    if limit > 1000:
        assert json.loads((path / "training_params.json").read_text())["status"] == "failed"
    assert (path / "best").exists() == (limit == 400_000)
    assert not list(path.rglob("*.tmp"))


def full_metrics(group: Group, root: str, path: str) -> tuple[str, str]:
    """The metrics file alone cannot be written, from its third line on: only rank 0 notices."""
    from segformer_spark.run import metrics_log

    original = metrics_log.MetricsLog.append

    def append(self: metrics_log.MetricsLog, row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise UserError("metrics.jsonl: cannot be written: No space left on device")
        original(self, row)

    patched: Any = metrics_log.MetricsLog
    patched.append = append
    return fails(group, root, path)


def test_a_log_that_cannot_be_written_ends_all_ranks(spark_root: Path, tmp_path: Path) -> None:
    for kind, text in run_on_ranks(2, full_metrics, str(spark_root), str(tmp_path / "run")):
        assert (kind, text) == ("UserError", "metrics.jsonl: cannot be written: No space left on device")


def test_a_checkpoint_of_another_run_brings_no_best_score(spark_root: Path, trained_run: Path, tmp_path: Path) -> None:
    """Its best model lies elsewhere: the new run chooses its own."""
    source = trained_run / "checkpoints" / "step-00000006"
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(path), (), str(source))
    assert (path / "best" / "model.safetensors").is_file()
    assert json.loads((path / "training_params.json").read_text())["best"]["step"] >= 6
