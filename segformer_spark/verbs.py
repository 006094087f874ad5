"""What each verb of the command line does: arguments -> options -> the package that does the work.

Heavy imports stand inside the verbs, so that --help is instant.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError

if TYPE_CHECKING:
    from segformer_spark.config.load import ResolvedConfig
    from segformer_spark.config.schema import HardwareConfig
    from segformer_spark.distributed.process_group import Group
TTA = ("none", "hflip", "flips")


@contextmanager
def _joined(hardware: HardwareConfig) -> Iterator[Group]:
    """The ranks that the launcher started, with logging and threads set up."""
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.distributed.process_group import choose_device, process_group, set_threads
    from segformer_spark.run.console import setup_logging

    launch = detect_launch(os.environ)
    setup_logging(launch.rank, launch.world_size)
    device = choose_device(hardware.device, launch.local_rank)
    set_threads(hardware.threads, launch.local_world_size)
    with process_group(launch, device, hardware.timeout_minutes) as group:
        yield group


def demo(arguments: argparse.Namespace) -> int:
    """Render, train, evaluate and submit on this machine."""
    from segformer_spark.demo import DemoOptions, run_demo
    from segformer_spark.run.console import setup_logging

    setup_logging()
    run_demo(
        DemoOptions(
            config=arguments.config,
            data_root=arguments.data_root,
            processes=arguments.processes,
            num_images=(arguments.num_train, arguments.num_val, arguments.num_test),
            overrides=tuple(arguments.overrides),
        )
    )
    return 0


def make_demo(arguments: argparse.Namespace) -> int:
    """Render a SPARK-shaped set."""
    from segformer_spark.data.demo.write import write_demo_set
    from segformer_spark.run.console import logger, setup_logging

    setup_logging()

    def say(split: str, done: int, total: int) -> None:
        if done == total:
            logger.info("rendered %d %s images", total, split)

    write_demo_set(
        arguments.root,
        num_train=arguments.num_train,
        num_val=arguments.num_val,
        num_test=arguments.num_test,
        size=arguments.size,
        seed=arguments.seed,
        progress=say,
    )
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """Download pretrained weights."""
    from segformer_spark.models.pretrained import SOURCES, fetch_weights
    from segformer_spark.models.segformer import VARIANTS

    wanted = [(v, s) for s in SOURCES for v in VARIANTS] if arguments.all else [(arguments.variant, arguments.source)]
    for variant, source in wanted:
        fetched = fetch_weights(variant, source, arguments.weights_dir)
        note = " (converted from .bin)" if fetched.converted else ""
        print(f"{fetched.folder}  sha256 {fetched.sha256}{note}")
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train, or describe what would run."""
    from segformer_spark.config.load import load_config

    environment = os.environ if arguments.from_env else None
    resolved = load_config(arguments.config, overrides=arguments.overrides, environment=environment)
    resume = arguments.resume or (os.environ.get("RESUME") or None if arguments.from_env else None)
    if resume is not None and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    if arguments.dry_run:
        return _dry_run(resolved, arguments.world_size)
    from segformer_spark.training.stop import EXIT_STOPPED, catch_signals

    with catch_signals() as stop, _joined(resolved.config.hardware) as group:
        from segformer_spark.training.loop import Outcome
        from segformer_spark.training.train import TrainOptions, run_training

        _, outcome = run_training(resolved, TrainOptions(resume, arguments.overwrite), group, stop)
    return EXIT_STOPPED if outcome is Outcome.STOPPED else 0


def _dry_run(resolved: ResolvedConfig, world_size: int | None) -> int:
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.training.dry_run import describe

    world = world_size or detect_launch(os.environ).world_size
    for line in describe(resolved, world):
        print(line)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a model of a run."""
    from segformer_spark.config.load import load_config
    from segformer_spark.run.directory import locate_model

    variables = _launch_variables(arguments)
    given = arguments.model or arguments.run or variables.get("MODEL_PATH")
    if given is None:
        raise UserError("evaluate: which model? Give a run directory, as in: segformer-spark evaluate runs/NAME")
    model, own_run = locate_model(Path(given))
    run = arguments.run if arguments.run is not None and (arguments.run / "config.yaml").is_file() else own_run
    config_file = arguments.config or (run / "config.yaml" if run is not None else None)
    if config_file is None:
        raise UserError(f"{model} does not lie in a run directory: give --config")
    environment = os.environ if arguments.from_env else None
    resolved = load_config(config_file, overrides=arguments.overrides, environment=environment)
    split = arguments.split or variables.get("SPLIT") or resolved.config.data.val_split
    tta = _tta(arguments, variables)
    output = arguments.output or variables.get("OUTPUT")
    if output is None and (own_run is None or run is None or own_run.resolve() != run.resolve()):
        raise UserError(f"{model} is not a model of the run: give --output, so that results of two models do not mix")
    if output is None:
        # Another model or augmentation has a folder of its own.
        parts = [split, "" if model.name == "best" else model.name, "" if tta == "none" else tta]
        output = Path(str(run)) / "evaluation" / "-".join(part for part in parts if part)
    hardware, precision, batch_size = _inference_settings(arguments)
    with _joined(hardware) as group:
        from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation

        options = EvaluateOptions(
            model=model,
            split=split,
            output=Path(output),
            num_worst=arguments.worst,
            tta=tta,
            precision=precision,
            batch_size=batch_size,
        )
        run_evaluation(resolved, options, group)
    return 0


def submit(arguments: argparse.Namespace) -> int:
    """Write a submission."""
    from segformer_spark.run.directory import locate_model

    variables = _launch_variables(arguments)
    given, images = arguments.model or variables.get("MODEL_PATH"), arguments.images or variables.get("TEST_IMAGES")
    if given is None or images is None:
        raise UserError(
            "submit: give --model and --images, as in: segformer-spark submit --model runs/NAME/best --images DIR"
        )
    model, run = locate_model(Path(given))
    output = arguments.output or variables.get("OUTPUT") or (run / "submission" if run is not None else None)
    if output is None:
        raise UserError(f"{model} does not lie in a run directory: give --output")
    hardware, precision, batch_size = _inference_settings(arguments)
    with _joined(hardware) as group:
        from segformer_spark.submission.submit import SubmitOptions, run_submission

        options = SubmitOptions(
            model=model,
            images=Path(images),
            output=Path(output),
            tta=_tta(arguments, variables),
            precision=precision,
            batch_size=batch_size,
            num_workers=arguments.num_workers,
            overwrite=arguments.overwrite,
        )
        run_submission(options, group)
    return 0


def _launch_variables(arguments: argparse.Namespace) -> Mapping[str, str]:
    """The environment if the batch script asks for it; a near miss of a known name is an error."""
    from segformer_spark.config.environment import read_environment

    if not arguments.from_env:
        return {}
    read_environment(os.environ)
    return os.environ


def _inference_settings(arguments: argparse.Namespace) -> tuple[HardwareConfig, str, int]:
    """Hardware, precision and batch size: the command line's, else the environment's, else the defaults."""
    from segformer_spark.config.load import load_config

    config = load_config(environment=os.environ if arguments.from_env else None).config
    precision = arguments.precision or config.training.precision
    hardware = config.hardware
    if arguments.device is not None:
        hardware = hardware.model_copy(update={"device": arguments.device})
    return hardware, precision, arguments.batch_size or config.training.batch_size


def _tta(arguments: argparse.Namespace, variables: Mapping[str, str]) -> str:
    value: str = arguments.tta or variables.get("TTA") or "none"
    if value not in TTA:
        raise UserError(f"TTA={value}: choose one of {', '.join(TTA)}")
    return value
