"""`submit`, and what verbs that predict have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import (
    CROPS,
    PRECISIONS,
    Subparsers,
    add_from_env,
    add_reading,
    add_verb,
    not_negative,
    positive,
    reading,
)
from segformer_spark.verbs.launch import joined, launch_variables, name_unused_variables

if TYPE_CHECKING:
    from segformer_spark.config.schema import HardwareConfig


DECISIONS = ("argmax", "saved")
HARDWARE = ("hardware.device", "hardware.threads", "hardware.timeout_minutes", "hardware.peer_timeout")
FROM_ENVIRONMENT = ("training.precision", "training.batch_size", *HARDWARE)


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "submit",
        "Predict the test images and write the submission zip; continues where it was cut off.",
        "segformer-spark submit runs/spark_b2_512 --images /scratch/spark/stream-1-test --tta flips",
        submit,
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="*",
        default=[],
        help="run directory, or an exported model in it; several are an ensemble, whose mean probability counts",
    )
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
    parser.add_argument(
        "--preview", type=not_negative, default=0, metavar="N", help="draw the first N predictions over their images"
    )
    parser.add_argument(
        "--check",
        type=Path,
        default=None,
        metavar="ZIP",
        help="check this zip, also one made elsewhere, against --images instead of predicting; every fault is named",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        default=None,
        metavar="ROOT",
        help="with --check: score the zip on the validation images of this SPARK folder; results go to --output",
    )
    add_reading(parser)
    add_from_env(parser, "MODEL_PATH, TEST_IMAGES, OUTPUT, TTA, CROPS, DECISION and BOXES")
    add_prediction(parser)


def add_prediction(parser: argparse.ArgumentParser, decision: str = "saved") -> None:
    parser.add_argument(
        "--decision",
        choices=DECISIONS,
        default=None,
        help="how classes follow from probabilities: as `evaluate --save-decision` left it with the model, or the most "
        f"probable class (default: {decision})",
    )
    parser.add_argument(
        "--tta",
        default=None,
        metavar="NAME[+NAME]",
        help="test-time augmentation: none, hflip, flips, turns (by 90 degrees), scales, or several joined by +, as in "
        "hflip+scales (default: none)",
    )
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


def submit(arguments: argparse.Namespace) -> int:
    """Write a submission."""
    from segformer_spark.run.directory import locate_model

    if arguments.check is not None:
        return _check(arguments)
    if arguments.truth is not None:
        raise UserError("--truth goes with --check ZIP")
    variables = launch_variables(arguments)
    given = arguments.model or next(iter(arguments.run), None) or variables.get("MODEL_PATH")
    others = tuple(arguments.run[1:])
    images = arguments.images or variables.get("TEST_IMAGES")
    example = "segformer-spark submit runs/NAME --images DIR"
    if given is None:
        raise UserError(f"submit: which model? For example: {example}")
    if arguments.model is not None and arguments.run:
        raise UserError(f"submit: {arguments.run[0]} and --model {arguments.model} both name a model; give one of them")
    model, run = locate_model(Path(given))
    images = images or _test_images(run, from_env=arguments.from_env)
    if images is None:
        raise UserError(f"submit: give --images, as in: {example}")
    own = run / "submission" if run is not None and not others else None
    output = arguments.output or variables.get("OUTPUT") or own
    if output is None and others:
        raise UserError("submit: the predictions of an ensemble belong to no run: give --output")
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
            tta=arguments.tta or variables.get("TTA"),
            use_saved=choice(arguments, variables, "decision", DECISIONS) != "argmax",
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
            num_previews=arguments.preview,
            others=others,
        )
        run_submission(options, group)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """Check a zip, and score it where the truth is given."""
    from segformer_spark.config.load import load_config
    from segformer_spark.evaluation.score_predictions import score_predictions
    from segformer_spark.submission.check import check_archive
    from segformer_spark.submission.spark_format import list_images

    images = None if arguments.images is None else list_images(arguments.images)
    data = None
    if arguments.truth is not None:
        if arguments.output is None:
            raise UserError("submit --check --truth: results need a folder: give --output")
        data = load_config(overrides=[f"data.root={arguments.truth}"]).config.data
    faults = check_archive(arguments.check, images)
    for fault in faults:
        print(f"wrong: {fault}")
    against = "names and arrays alone: give --images" if images is None else f"{len(images)} images"
    print(f"{arguments.check}: {f'{len(faults)} faults' if faults else 'valid'} ({against})")
    if faults:
        return ExitCode.FOUND_WRONG
    if data is not None:
        score_predictions(arguments.check, data, data.val_split, arguments.output)
    return ExitCode.GOOD


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
