"""What version 0.1 wrote is still read: a run of SegFormer-B0 (weights set to zero), studies, a scaling table."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from segformer_spark.bench.scaling import read_rows
from segformer_spark.checkpoint.store import read, verify
from segformer_spark.config.load import load_config, run_path
from segformer_spark.config.stored import load_stored_config
from segformer_spark.config.study import read_study, resolve_run
from segformer_spark.config.sweep import read_sweep
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.listing import details, summarize
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.train import TrainOptions, run_training
from tests.ranks import Group, run_on_ranks

ARCHIVE = Path(__file__).parent / "fixtures" / "runs_0_1.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    write_demo_set(folder / "spark", num_train=8, num_val=3, num_test=2, size=64, seed=5)
    return folder


def test_the_fixture_is_small() -> None:
    assert ARCHIVE.stat().st_size <= 200_000


def test_the_run_is_listed_and_its_configuration_read(earlier: Path) -> None:
    run = RunDirectory(earlier / "runs" / "old")
    summary = summarize(run)
    assert (summary.state, summary.step, summary.total_steps) == ("stopped on request", 3, 6)
    assert any("from step 0" in line for line in details(run))
    config = run.load_config().config
    assert "seed" in run.config.read_text().partition("mode:")[2].splitlines()[0]
    assert config.augmentation.crop.mode == "original"
    results = json.loads((run.evaluation / "val" / "results.json").read_text())
    assert results["groups"], "the name of before, which `categories` replaced"


def resume(group: Group, folder: str) -> tuple[int, str, list[str]]:
    os.chdir(folder)
    resolved = load_stored_config(Path("runs/old/config.yaml"))
    run, outcome = run_training(resolved, TrainOptions(resume="auto"), group, StopRequest())
    session = Session.open(run.path, InferenceSettings(), group, resolved.config.data)
    ids = [prediction for _, prediction in session.predictions(session.items([0, 1, 2]))]
    return len(ids), outcome.value, list(session.card.class_names)


def test_its_checkpoint_is_verified_and_resumed_to_the_end(earlier: Path) -> None:
    (checkpoint,) = (earlier / "runs" / "old" / "checkpoints").iterdir()
    verify(checkpoint)
    assert read(checkpoint).state["progress"]["step"] == 3
    ((predicted, outcome, names),) = run_on_ranks(1, resume, str(earlier))
    assert (predicted, outcome, names) == (3, "completed", ["background", "body", "panels"])
    record = json.loads((earlier / "runs" / "old" / "training_params.json").read_text())
    assert [(a["from_step"], a["to_step"]) for a in record["attempts"]] == [(0, 3), (3, 6)]


def test_its_study_finds_runs_under_their_former_names(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(earlier)
    plain, flipped = read_study(Path("studies/old.yaml")).runs
    assert (plain.name, flipped.name) == ("old-SegFormer_B0-none-s1", "old-SegFormer_B0-plus_flip-s1")
    assert flipped.former_name == "old-SegFormer_B0-flip-s1"
    assert run_path(resolve_run(flipped).config).name == flipped.name
    former = earlier / "studies" / "old" / "runs" / flipped.former_name
    former.mkdir(parents=True)
    (former / "config.yaml").write_text("{}")
    assert run_path(resolve_run(flipped).config) == Path("studies/old/runs") / flipped.former_name
    assert resolve_run(flipped).config.experiment.name == flipped.former_name
    (run_path(resolve_run(flipped).config).with_name(flipped.name)).mkdir()
    assert run_path(resolve_run(flipped).config).name == flipped.name, "the run of today's name comes first"


def test_sweeps_tables_and_renamed_configurations(earlier: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_sweep(earlier / "studies" / "sweep.yaml")) == 2
    rows = read_rows(earlier / "scaling.csv")
    assert [row.interconnect_gb_per_s for row in rows] == [None, 1.25]
    with caplog.at_level("WARNING", logger="segformer_spark"):
        config = load_config("configs/spark_seed_b2_512.yaml").config
    assert "is now configs/spark_original_b2_512.yaml" in caplog.text
    assert run_path(config) == Path("runs/spark_seed_b2_512"), "its runs are where they were"
    assert config.model.variant == load_config("configs/spark_original_b2_512.yaml").config.model.variant == "b2"
