from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from segformer_spark.config.load import load_config
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.run.directory import RunDirectory, locate_model, model_name, open_for_training, sweep_leftovers


def make(path: Path) -> RunDirectory:
    run = open_for_training(path, resume=False, overwrite=False)
    run.create(load_config(overrides=["training.optimizer.lr=1e-5", "experiment.notes=yes: no"]))
    return run


def test_the_configuration_loads_back(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    config = run.load_config().config
    assert config.training.optimizer.lr == 1e-5
    assert config.experiment.notes == "yes: no"
    assert yaml.safe_load(run.config.read_text())["training"]["optimizer"]["lr"] == 1e-5, "for YAML 1.1 too"


def test_an_existing_run_is_refused_unless_asked(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    (run.path / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="--resume auto.*--overwrite"):
        open_for_training(run.path, resume=False, overwrite=False)
    open_for_training(run.path, resume=True, overwrite=False)
    assert (run.path / "precious").exists()
    open_for_training(run.path, resume=False, overwrite=True)
    assert not run.path.exists()


def test_overwrite_removes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume, overwrite in ((False, True), (True, False), (False, False)):
        with pytest.raises(CheckpointError, match="not a run"):
            open_for_training(tmp_path, resume=resume, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_what_a_start_that_was_killed_left_is_no_obstacle(tmp_path: Path) -> None:
    """Between the lease and config.yaml; without a lease it is somebody's folder."""
    run = RunDirectory(tmp_path / "r")
    run.attempts.mkdir(parents=True)
    run.log.write_text("begun")
    with pytest.raises(CheckpointError, match="not a run"):
        open_for_training(run.path, resume=True, overwrite=False)
    (run.attempts / "0001.json").write_text("{}")
    (run.path / ".config.yaml.77.tmp").write_text("half")
    (run.path / ".best.77.tmp").mkdir()
    for resume in (True, False):
        assert open_for_training(run.path, resume=resume, overwrite=False) == run
    sweep_leftovers(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["attempts", "log.txt"]
    (run.path / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="not a run"):
        open_for_training(run.path, resume=True, overwrite=True)


def test_an_empty_or_missing_folder_is_fine(tmp_path: Path) -> None:
    open_for_training(tmp_path / "new", resume=True, overwrite=False)
    open_for_training(tmp_path, resume=False, overwrite=False)


def test_the_record_is_plain_yaml_and_json(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    run.write_record({"a": (1, 2), "b": {"c": None}, "d": "text: with #"})
    assert yaml.safe_load(run.params_yaml.read_text()) == json.loads(run.params_json.read_text())
    assert "!!python" not in run.params_yaml.read_text()


def test_locating_a_model(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    with pytest.raises(CheckpointError, match="no best/ or final/"):
        locate_model(run.path)
    run.final.mkdir()
    assert locate_model(run.path) == (run.final, run.path)
    run.best.mkdir()
    assert locate_model(run.path) == (run.best, run.path)
    assert locate_model(run.final) == (run.final, run.path)
    (tmp_path / "loose").mkdir()
    assert locate_model(tmp_path / "loose") == (tmp_path / "loose", None)
    with pytest.raises(CheckpointError, match="no such model"):
        locate_model(tmp_path / "none")


def test_a_reader_finds_what_a_replacement_set_aside_and_touches_nothing(tmp_path: Path) -> None:
    """Beside a run that trains, or after a kill between the two renames."""
    run = make(tmp_path / "r")
    aside = run.path / ".best.old"
    aside.mkdir()
    before = sorted(run.path.rglob("*"))
    assert locate_model(run.path) == (aside, run.path)
    assert locate_model(run.best) == (aside, run.path)
    assert model_name(aside) == model_name(run.best) == "best"
    assert sorted(run.path.rglob("*")) == before
    run.best.mkdir()
    assert locate_model(run.path) == (run.best, run.path)


def test_loading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory(tmp_path).load_config()
