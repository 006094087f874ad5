"""`demo`: the whole way on one machine: render, train, evaluate, submit, report."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.config.load import load_config, project_folder, run_path
from segformer_spark.data.demo.once import render_once
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.data.readers.spark import TEST_FOLDER
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.verb_process import run_verb, set_options

_SEED = 0


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says; `num_images` are those of train, val and test."""

    config: Path | None
    data_root: Path
    processes: int
    num_images: tuple[int, int, int]
    overrides: tuple[str, ...] = ()


def run_demo(options: DemoOptions) -> RunDirectory:
    """Do everything and say where the results are.

    Raises:
        UserError: a step failed; its own message stands above.
    """
    config_file = options.config or project_folder("configs") / "demo.yaml"
    overrides = [f"data.root={options.data_root}", *options.overrides]
    config = load_config(config_file, overrides=overrides).config
    run = RunDirectory(run_path(config))
    _render(options, max(config.data.input_size))
    replace = ["--overwrite"] if _is_own(run, options.data_root) else []
    training = ["train", "--config", str(config_file), *replace, *set_options(overrides)]
    run_verb("training", training, options.processes)
    run_verb("evaluation", ["evaluate", str(run.path)])
    images = str(options.data_root / TEST_FOLDER)
    run_verb("submission", ["submit", str(run.path), "--images", images, "--tta", "hflip"])
    run_verb("report", ["report", str(run.path)])
    for line in _summary(run, config.data.val_split):
        logger.info("%s", line)
    return run


def _is_own(run: RunDirectory, data_root: Path) -> bool:
    """Whether an existing run is one of the demo's, which may be replaced without asking."""
    return run.is_run() and Path(run.load_config().config.data.root) == data_root


def _render(options: DemoOptions, size: int) -> None:
    num_train, num_val, num_test = options.num_images
    wanted: dict[str, Any] = {
        "num_train": num_train,
        "num_val": num_val,
        "num_test": num_test,
        "size": size,
        "seed": _SEED,
    }
    render_once(options.data_root, wanted, lambda: write_demo_set(options.data_root, **wanted))


def _summary(run: RunDirectory, split: str) -> list[str]:
    with run.history.open(encoding="utf-8") as stream:
        untrained = next(csv.DictReader(stream))
    results = read_json_object(run.evaluation / split / "results.json")
    return [
        f"SPARK score on the rendered validation set: {results['spark_score']:.3f} trained, "
        f"{float(untrained['spark_score']):.3f} untrained",
        f"curves      {run.curves}",
        f"evaluation  {run.evaluation / split / 'results.json'}, figures/, worst/",
        f"report      {run.path / 'report.html'}",
        f"model       {run.best}",
        f"submission  {run.submission / 'submission.zip'}",
    ]
