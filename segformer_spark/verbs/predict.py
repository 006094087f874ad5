"""`predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import (
    CROPS,
    Subparsers,
    add_from_env,
    add_reading,
    add_set,
    add_verb,
    not_negative,
    reading,
)
from segformer_spark.verbs.inference import DECISIONS, FROM_ENVIRONMENT, add_prediction, choice, inference_settings
from segformer_spark.verbs.launch import joined, launch_variables, name_unused_variables
from segformer_spark.verbs.overrides import refuse_unused

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS = ("ids", "color", "overlay", "probabilities")
_EXAMPLE = "segformer-spark predict runs/leaves new_photos/ --output masks/"


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "predict",
        "Masks for images without labels, of any model: class ids, colours, overlays, a table; continues where it was "
        "cut off.",
        _EXAMPLE,
        predict,
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="*",
        metavar="RUN_OR_MODEL INPUT",
        help="run directory, exported model, published SegFormer's folder or ONNX file, several are an ensemble, whose "
        "mean probability counts; then images, folders, patterns",
    )
    parser.add_argument("--onnx", type=Path, default=None, metavar="FILE", help="predict with this ONNX file instead")
    parser.add_argument("--output", type=Path, default=None, help="folder of results (default: <run>/predictions)")
    parser.add_argument(
        "--write",
        nargs="+",
        choices=_KINDS,
        default=["ids", "color", "overlay"],
        help="files for each image (default: ids color overlay; ids always)",
    )
    parser.add_argument(
        "--probabilities",
        choices=("uint8", "float16"),
        default="uint8",
        help="with --write probabilities: as x 255, or in half precision (default: %(default)s)",
    )
    parser.add_argument(
        "--num-workers", type=not_negative, default=2, help="loader processes per rank (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace predictions of another model or other settings"
    )
    add_reading(parser)
    add_from_env(parser, "MODEL_PATH, PREDICT_IMAGES, OUTPUT, TTA, CROPS and DECISION")
    add_prediction(parser)
    add_set(parser)


def predict(arguments: argparse.Namespace) -> int:
    """Predict images."""
    from segformer_spark.run.directory import locate_model

    refuse_unused("predict", arguments.overrides, ("inference",))
    variables = launch_variables(arguments)
    (model, *others), inputs = _models_and_inputs(arguments, variables)
    run = None if model.is_file() or others else locate_model(model)[1]
    output = arguments.output or variables.get("OUTPUT") or (run / "predictions" if run is not None else None)
    if output is None and others:
        raise UserError("predict: the masks of an ensemble belong to no run: give --output")
    if output is None:
        raise UserError(f"{model} does not lie in a run directory: give --output")
    hardware, precision, batch_size = inference_settings(arguments)
    with joined(hardware) as group:
        from segformer_spark.evaluation.session import InferenceSettings
        from segformer_spark.prediction.predict import PredictOptions, run_prediction

        if arguments.from_env and group.is_main:
            name_unused_variables("predict", FROM_ENVIRONMENT)
        settings = InferenceSettings(
            precision=precision,
            batch_size=batch_size,
            tta=arguments.tta or variables.get("TTA"),
            use_saved=choice(arguments, variables, "decision", DECISIONS) != "argmax",
            crops=choice(arguments, variables, "crops", CROPS),
            view=_view(arguments),
            num_workers=arguments.num_workers,
            keep_images="overlay" in arguments.write,
            **reading(arguments),
        )
        options = PredictOptions(
            model=model,
            inputs=inputs,
            output=Path(output),
            kinds=arguments.write,
            keep=arguments.probabilities,
            inference=settings,
            overwrite=arguments.overwrite,
            others=tuple(others),
        )
        run_prediction(options, group)
    return 0


def _models_and_inputs(arguments: argparse.Namespace, variables: Mapping[str, str]) -> tuple[list[Path], list[Path]]:
    """The first path is a model; further ones are while they are runs or model folders."""
    from segformer_spark.run.directory import is_model

    paths = list(arguments.paths)
    model = arguments.onnx or variables.get("MODEL_PATH")
    if model is None and paths:
        model = paths.pop(0)
    models = [] if model is None else [Path(model)]
    while arguments.onnx is None and paths and is_model(paths[0]):
        models.append(paths.pop(0))
    inputs = paths or [Path(text) for text in variables.get("PREDICT_IMAGES", "").split(":") if text]
    if not models:
        raise UserError(f"predict: which model? For example: {_EXAMPLE}")
    if not inputs:
        raise UserError(f"predict: which images? For example: {_EXAMPLE}")
    return models, inputs


def _view(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of `inference` that --set gives."""
    from segformer_spark.config.load import load_config

    return load_config(overrides=arguments.overrides).overridden("inference")
