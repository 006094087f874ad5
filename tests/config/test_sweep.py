from __future__ import annotations

import re
from pathlib import Path

import pytest

from segformer_spark.config.load import PROJECT_ROOT, load_config, run_name
from segformer_spark.config.schema import RUN_NAME_PATTERN
from segformer_spark.config.study import pick_run
from segformer_spark.config.sweep import read_sweep
from segformer_spark.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text("model: {variant: b0}\n")
    path = folder / "my sweep.yaml"
    path.write_text(text)
    return path


def test_every_combination_the_last_key_fastest(tmp_path: Path) -> None:
    path = write(tmp_path, "base: base.yaml\ngrid:\n  training.optimizer.lr: [3e-5, 6e-5]\n  experiment.seed: [1, 2]\n")
    runs = read_sweep(path)
    assert [run.settings for run in runs] == [
        ("training.optimizer.lr=3e-05", "experiment.seed=1"),
        ("training.optimizer.lr=3e-05", "experiment.seed=2"),
        ("training.optimizer.lr=6e-05", "experiment.seed=1"),
        ("training.optimizer.lr=6e-05", "experiment.seed=2"),
    ]
    assert len({run.name for run in runs}) == 4
    assert all(re.fullmatch(RUN_NAME_PATTERN, run.name) for run in runs)
    config = load_config(runs[2].base, overrides=runs[2].overrides).config
    assert (config.training.optimizer.lr, config.experiment.seed, config.model.variant) == (6e-5, 1, "b0")
    assert config.experiment.name == "my_sweep-02-lr_6e-05-seed_1"


def test_a_list_of_runs_with_values_of_every_kind(tmp_path: Path) -> None:
    text = (
        "base: base.yaml\nruns:\n  - {model.variant: b3, model.freeze_backbone: true}\n"
        "  - {training.loss.class_weights: [1.0, 2.0, 3.0], data.val_subset: null}\n"
    )
    runs = read_sweep(write(tmp_path, text))
    first, second = (load_config(run.base, overrides=run.overrides).config for run in runs)
    assert (first.model.variant, first.model.freeze_backbone) == ("b3", True)
    assert (second.training.loss.class_weights, second.data.val_subset) == ([1.0, 2.0, 3.0], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {experiment.seed: [1]}\n", "my sweep.yaml: base: this key is missing"),
        ("base: base.yaml\n", "one of them"),
        ("base: base.yaml\ngrid: {experiment.seed: 1}\n", "yaml:2: grid.experiment.seed: input should be a valid list"),
        (
            "base: base.yaml\ngrid: {experiment.sede: [1]}\n",
            "experiment.sede: there is no such key .* mean experiment.seed",
        ),
        ("base: base.yaml\nruns: []\n", "runs: list should have at least 1 item"),
        ("base: none.yaml\nruns: [{experiment.seed: 1}]\n", "no such configuration file"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(write(tmp_path, text))


def test_no_such_run_or_file(tmp_path: Path) -> None:
    path = write(tmp_path, "base: base.yaml\nruns: [{experiment.seed: 1}, {experiment.seed: 2}]\n")
    assert pick_run(path, 1).settings == ("experiment.seed=2",)
    with pytest.raises(ConfigError, match="there is no run 2; there are 2: sbatch --array=0-1"):
        pick_run(path, 2)
    with pytest.raises(ConfigError, match="no such sweep"):
        read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_sweeps(path: Path) -> None:
    for run in read_sweep(path):
        load_config(run.base, overrides=run.overrides)


def test_a_fold_ends_the_name_once(tmp_path: Path) -> None:
    settings = "{data.cross_validation.fold: 3, experiment.notes: " + 80 * "x" + "}"
    (run,) = read_sweep(write(tmp_path, f"base: base.yaml\nruns: [{settings}]\n"))
    name = run_name(load_config(run.base, overrides=run.overrides).config)
    assert name.count("fold") == 1
    assert name.endswith("x-fold3")
    assert len(name) == 64
