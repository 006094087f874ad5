"""`demo`: the whole way on one machine: render, train, evaluate, submit."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.config.load import PROJECT_ROOT, load_config, run_path
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.data.readers.spark import TEST_FOLDER
from segformer_spark.errors import UserError
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory

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
    config_file = options.config or PROJECT_ROOT / "configs" / "demo.yaml"
    overrides = [f"data.root={options.data_root}", *options.overrides]
    config = load_config(config_file, overrides=overrides).config
    run = RunDirectory(run_path(config))
    _render(options, config.data.image_size)
    settings = [argument for override in overrides for argument in ("--set", override)]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(options.processes),
    ]
    package = ["-m", "segformer_spark"]
    replace = ["--overwrite"] if _is_own(run, options.data_root) else []
    _run("training", [*launcher, *package, "train", "--config", str(config_file), *replace, *settings])
    _run("evaluation", [sys.executable, *package, "evaluate", str(run.path)])
    images = str(options.data_root / TEST_FOLDER)
    _run(
        "submission",
        [sys.executable, *package, "submit", "--model", str(run.best), "--images", images, "--tta", "hflip"],
    )
    for line in _summary(run, config.data.val_split):
        logger.info("%s", line)
    return run


def _is_own(run: RunDirectory, data_root: Path) -> bool:
    """Whether an existing run is one of the demo's, which may be replaced without asking."""
    return run.is_run() and Path(run.load_config().config.data.root) == data_root


def _render(options: DemoOptions, size: int) -> None:
    num_train, num_val, num_test = options.num_images
    wanted = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "size": size, "seed": _SEED}
    stamp = options.data_root / "demo.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        logger.info("the rendered set in %s is there already", options.data_root)
        return
    if stamp.is_file():
        shutil.rmtree(options.data_root)
    logger.info("rendering %d + %d + %d images into %s", num_train, num_val, num_test, options.data_root)
    write_demo_set(options.data_root, num_train=num_train, num_val=num_val, num_test=num_test, size=size, seed=_SEED)
    # Written last: a set that was cut off while rendering has no stamp.
    stamp.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _run(name: str, command: Sequence[str]) -> None:
    logger.info("%s", name)
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise UserError(f"the demo's {name} failed with status {status}; see the messages above")


def _summary(run: RunDirectory, split: str) -> list[str]:
    with run.history.open(encoding="utf-8") as stream:
        untrained = next(csv.DictReader(stream))
    results = json.loads((run.evaluation / split / "results.json").read_text(encoding="utf-8"))
    return [
        f"SPARK score on the rendered validation set: {results['spark_score']:.3f} trained, "
        f"{float(untrained['spark_score']):.3f} untrained",
        f"curves      {run.curves}",
        f"evaluation  {run.evaluation / split / 'results.json'}, figures/, worst/",
        f"model       {run.best}",
        f"submission  {run.submission / 'submission.zip'}",
    ]
