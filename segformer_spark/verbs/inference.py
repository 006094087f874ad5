"""`evaluate` and `submit`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import (
    CROPS,
    PRECISIONS,
    TTA,
    Subparsers,
    add_from_env,
    add_reading,
    add_set,
    add_verb,
    not_negative,
    positive,
    reading,
)
from segformer_spark.verbs.launch import joined, launch_variables, name_unused_variables
from segformer_spark.verbs.overrides import READING, refuse_unused, refuse_without_effect

if TYPE_CHECKING:
    from segformer_spark.config.schema import HardwareConfig


_HARDWARE = ("hardware.device", "hardware.threads", "hardware.timeout_minutes", "hardware.peer_timeout")
_USED_BY_EVALUATE = (
    *("data.dataset", "data.root", "data.val_split", "data.num_workers", "data.folder", "inference"),
    *("data.flip_pairs", *READING),
    *_HARDWARE,
)
FROM_ENVIRONMENT = ("training.precision", "training.batch_size", *_HARDWARE)
_OPTIONS = {
    "training.precision": "--precision",
    "training.batch_size": "--batch-size",
    "training.validation.batch_size": "--batch-size",
}


def add(subparsers: Subparsers) -> None:
    """Declare both verbs."""
    _add_evaluate(subparsers)
    _add_submit(subparsers)


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "evaluate",
        "Evaluate a run's model at native resolution.",
        "segformer-spark evaluate runs/spark_b2_512 --tta flips",
        evaluate,
    )
    parser.add_argument("run", type=Path, nargs="?", default=None, help="run directory, or an exported model in it")
    parser.add_argument("--model", type=Path, default=None, help="exported model folder (default: the run's best/)")
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: the run's config.yaml)")
    parser.add_argument("--split", default=None, help="split of the data set (default: the validation split)")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for results (default: <run>/evaluation/<split>)"
    )
    parser.add_argument(
        "--worst", type=int, default=12, help="how many of the worst images to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--examples",
        type=not_negative,
        default=0,
        metavar="N",
        help="draw the first, worst, median and best N images below each other (default: %(default)s)",
    )
    add_from_env(parser, "MODEL_PATH, SPLIT, OUTPUT, TTA, CROPS and overrides")
    add_prediction(parser)
    add_set(parser)


def _add_submit(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "submit",
        "Predict the test images and write the submission zip; continues where it was cut off.",
        "segformer-spark submit runs/spark_b2_512 --images /scratch/spark/stream-1-test --tta flips",
        submit,
    )
    parser.add_argument("run", type=Path, nargs="?", default=None, help="run directory, or an exported model in it")
    parser.add_argument("--model", type=Path, default=None, help="the same, as an option")
    parser.add_argument("--images", type=Path, default=None, help="test images (default: <data root>/stream-1-test)")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the predictions (default: <run>/submission)"
    )
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes per rank (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace predictions of another model or other settings"
    )
    parser.add_argument(
        "--boxes", type=Path, default=None, help="CSV with 'Image name' and 'Bounding box', for --crops box"
    )
    add_reading(parser)
    add_from_env(parser, "MODEL_PATH, TEST_IMAGES, OUTPUT, TTA, CROPS and BOXES")
    add_prediction(parser)


def add_prediction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tta", choices=TTA, default=None, help="test-time augmentation (default: none)")
    parser.add_argument(
        "--crops",
        choices=CROPS,
        default=None,
        help="show the model a window around the object: around its labelled box, or what a first pass finds "
        "(default: as the model was trained)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="arithmetic of the model (default: fp32)")
    parser.add_argument("--batch-size", type=positive, default=None, help="images per process at a time (default: 8)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="(default: auto)")


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a model of a run."""
    from segformer_spark.config.load import load_config
    from segformer_spark.config.stored import load_stored_config
    from segformer_spark.run.directory import locate_model, model_name

    variables = launch_variables(arguments)
    given = arguments.model or arguments.run or variables.get("MODEL_PATH")
    if given is None:
        raise UserError("evaluate: which model? Give a run directory, as in: segformer-spark evaluate runs/NAME")
    model, own_run = locate_model(Path(given))
    run = arguments.run if arguments.run is not None and (arguments.run / "config.yaml").is_file() else own_run
    config_file = arguments.config or (run / "config.yaml" if run is not None else None)
    if config_file is None:
        raise UserError(f"{model} does not lie in a run directory: give --config")
    refuse_unused("evaluate", arguments.overrides, _USED_BY_EVALUATE, (), _OPTIONS)
    environment = os.environ if arguments.from_env else None
    load = load_config if arguments.config else load_stored_config
    resolved = load(config_file, overrides=arguments.overrides, environment=environment)
    refuse_without_effect(arguments.overrides, resolved.config)
    split = arguments.split or variables.get("SPLIT") or resolved.config.data.val_split
    tta, crops = choice(arguments, variables, "tta", TTA) or "none", choice(arguments, variables, "crops", CROPS)
    output = arguments.output or variables.get("OUTPUT")
    hardware, precision, batch_size = inference_settings(arguments)
    if output is None and (own_run is None or run is None or own_run.resolve() != run.resolve()):
        raise UserError(f"{model} is not a model of the run: give --output, so that results of two models do not mix")
    if output is None:
        # Another model, augmentation, view or precision has a folder of its own.
        name = model_name(model)
        parts = [split, "" if name == "best" else name, "" if tta == "none" else tta]
        parts.append("" if crops is None else f"crops_{crops}")
        parts += [f"{name}_{value}" for name, value in sorted(resolved.overridden_inference().items())]
        parts.append("" if precision == "fp32" else precision)
        output = Path(str(run)) / "evaluation" / "-".join(part for part in parts if part)
    with joined(hardware) as group:
        from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
        from segformer_spark.evaluation.session import InferenceSettings

        if arguments.from_env and group.is_main:
            name_unused_variables("evaluate", (*_USED_BY_EVALUATE, *FROM_ENVIRONMENT))
        settings = InferenceSettings(precision=precision, batch_size=batch_size, tta=tta, crops=crops)
        options = EvaluateOptions(model, split, Path(output), arguments.worst, arguments.examples, settings)
        run_evaluation(resolved, options, group)
    return 0


def submit(arguments: argparse.Namespace) -> int:
    """Write a submission."""
    from segformer_spark.run.directory import locate_model

    variables = launch_variables(arguments)
    given = arguments.model or arguments.run or variables.get("MODEL_PATH")
    images = arguments.images or variables.get("TEST_IMAGES")
    example = "segformer-spark submit runs/NAME --images DIR"
    if given is None:
        raise UserError(f"submit: which model? For example: {example}")
    if arguments.model is not None and arguments.run is not None:
        raise UserError(f"submit: {arguments.run} and --model {arguments.model} both name the model; give one of them")
    model, run = locate_model(Path(given))
    images = images or _test_images(run, from_env=arguments.from_env)
    if images is None:
        raise UserError(f"submit: give --images, as in: {example}")
    output = arguments.output or variables.get("OUTPUT") or (run / "submission" if run is not None else None)
    if output is None:
        raise UserError(f"{model} does not lie in a run directory: give --output")
    boxes = arguments.boxes or variables.get("BOXES")
    hardware, precision, batch_size = inference_settings(arguments)
    with joined(hardware) as group:
        from segformer_spark.evaluation.session import InferenceSettings
        from segformer_spark.submission.submit import SubmitOptions, run_submission

        if arguments.from_env and group.is_main:
            name_unused_variables("submit", ("data.root", *FROM_ENVIRONMENT))
        settings = InferenceSettings(
            precision=precision,
            batch_size=batch_size,
            tta=choice(arguments, variables, "tta", TTA) or "none",
            crops=choice(arguments, variables, "crops", CROPS),
            num_workers=arguments.num_workers,
            **reading(arguments),
        )
        options = SubmitOptions(
            model=model,
            images=Path(images),
            output=Path(output),
            inference=settings,
            overwrite=arguments.overwrite,
            boxes=Path(boxes) if boxes else None,
        )
        run_submission(options, group)
    return 0


def _test_images(run: Path | None, *, from_env: bool) -> Path | None:
    """Those of the run's data set, as SPARK has them; DATA_ROOT may have moved it. None for a model elsewhere."""
    from segformer_spark.config.stored import load_stored_config

    if run is None:
        return None
    config = load_stored_config(run / "config.yaml", environment=os.environ if from_env else None).config
    return Path(config.data.root) / "stream-1-test"


def inference_settings(arguments: argparse.Namespace) -> tuple[HardwareConfig, str, int]:
    """Hardware, precision and batch size: the command line's, else the environment's, else the defaults."""
    from segformer_spark.config.load import load_config

    own = [item for item in getattr(arguments, "overrides", ()) if item.partition(".")[0].strip() == "hardware"]
    config = load_config(overrides=own, environment=os.environ if arguments.from_env else None).config
    precision = arguments.precision or config.training.precision
    hardware = config.hardware
    if arguments.device is not None:
        hardware = hardware.model_copy(update={"device": arguments.device})
    return hardware, precision, arguments.batch_size or config.training.batch_size


def choice(
    arguments: argparse.Namespace, variables: Mapping[str, str], name: str, choices: tuple[str, ...]
) -> str | None:
    """The option, else the variable of the same name in capitals; None when neither is given."""
    value: str | None = getattr(arguments, name) or variables.get(name.upper()) or None
    if value is not None and value not in choices:
        raise UserError(f"{name.upper()}={value}: choose one of {', '.join(choices)}")
    return value
