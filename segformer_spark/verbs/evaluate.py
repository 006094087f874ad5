"""`evaluate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from segformer_spark.data.grouping import GROUP_BY_HELP
from segformer_spark.errors import UserError
from segformer_spark.files.paths import real_path
from segformer_spark.verbs.arguments import (
    CROPS,
    Subparsers,
    add_from_env,
    add_set,
    add_verb,
    not_negative,
    positive,
    positive_number,
)
from segformer_spark.verbs.inference import (
    DECISIONS,
    FROM_ENVIRONMENT,
    HARDWARE,
    add_prediction,
    choice,
    inference_settings,
)
from segformer_spark.verbs.launch import joined, launch_variables, name_unused_variables
from segformer_spark.verbs.overrides import READING, refuse_unused, refuse_without_effect

_USED_BY_EVALUATE = (
    *("data.dataset", "data.root", "data.val_split", "data.num_workers", "data.folder", "inference"),
    *("data.flip_pairs", "data.train_split", "data.cross_validation", *READING),
    *HARDWARE,
)
_OPTIONS = {
    "training.precision": "--precision",
    "training.batch_size": "--batch-size",
    "training.validation.batch_size": "--batch-size",
}


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "evaluate",
        "Evaluate a run's model at native resolution.",
        "segformer-spark evaluate runs/spark_b2_512 --tta flips",
        evaluate,
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="*",
        default=[],
        help="run directory, or an exported model in it; several are an ensemble, whose mean probability counts",
    )
    parser.add_argument("--model", type=Path, default=None, help="exported model folder (default: the run's best/)")
    parser.add_argument(
        "--average-checkpoints",
        type=positive,
        default=None,
        metavar="N",
        help="evaluate the mean of the weights of the run's last N checkpoints, which is written to <run>/average-N",
    )
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: the run's config.yaml)")
    parser.add_argument("--split", default=None, help="split of the data set (default: the validation split)")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for results (default: <run>/evaluation/<split>)"
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=12,
        help="how many of the worst images to draw; 0 draws no images at all (default: %(default)s)",
    )
    parser.add_argument(
        "--examples",
        type=not_negative,
        default=0,
        metavar="N",
        help="draw the first, worst, median and best N images below each other (default: %(default)s)",
    )
    _add_parts(parser)
    _add_comparison(parser)
    add_from_env(parser, "MODEL_PATH, SPLIT, OUTPUT, TTA, CROPS, DECISION and overrides")
    add_prediction(parser, decision="argmax")
    add_set(parser)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group-by", default=None, metavar="RULE", help=f"for intervals and halves: {GROUP_BY_HELP}")
    parser.add_argument(
        "--spacing",
        type=positive_number,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("HEIGHT", "WIDTH"),
        help="size of a pixel, the unit of distances between edges (default: 1 1)",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=None,
        metavar="I/N",
        help="evaluate every N-th image from image I on, 0 <= I < N; the parts are joined by --merge",
    )
    own = parser.add_argument_group("without a model")
    own.add_argument(
        "--merge", type=Path, nargs="+", default=None, metavar="DIR", help="join evaluations of different images"
    )
    own.add_argument(
        "--predictions",
        type=Path,
        default=None,
        metavar="DIR",
        help="score masks made elsewhere, a folder or zip: class ids or colours in PNG files named as the images, or "
        "SPARK's npz",
    )
    own.add_argument("--dataset", default=None, help="with --predictions: the data set's reader (default: --config's)")
    own.add_argument("--root", type=Path, default=None, help="with --predictions: folder of the data set")


def _shard(text: str) -> tuple[int, int]:
    try:
        first, step = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: write I/N, such as 0/4") from error
    if not 0 <= first < step:
        raise argparse.ArgumentTypeError(f"{text}: I is from 0 to N - 1")
    return first, step


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group(
        "other ways of asking",
        "Chosen on one half of the split, reported on the other: inference.txt, .csv and .json in "
        "<run>/evaluation/<split>-inference.",
    )
    own.add_argument(
        "--compare-inference",
        action="store_true",
        help="compare decision rules, augmentations, windows and corrections of masks instead of evaluating",
    )
    own.add_argument(
        "--save-decision",
        action="store_true",
        help="with --compare-inference: write the best to the run's decision.json, which submit and predict use",
    )
    own.add_argument(
        "--time-limit",
        type=positive_number,
        default=1.1,
        metavar="FACTOR",
        help="the saved decision takes at most this multiple of the plain time per image (default: %(default)s)",
    )
    own.add_argument(
        "--try-tta",
        nargs="*",
        default=None,
        metavar="NAME",
        help="augmentations to compare (default: hflip flips turns scales)",
    )
    own.add_argument(
        "--try-windows", nargs="*", type=positive, default=[], metavar="SIDE", help="sliding windows to compare"
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a model of a run, or several as an ensemble."""
    from segformer_spark.config.load import load_config
    from segformer_spark.config.stored import load_stored_config
    from segformer_spark.run.directory import ENSEMBLE, RunDirectory, locate_model, model_name

    if arguments.merge is not None or arguments.predictions is not None:
        return _evaluate_files(arguments)
    for name in ("dataset", "root"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} goes with --predictions")
    variables = launch_variables(arguments)
    first = arguments.run[0] if arguments.run else None
    others = tuple(arguments.run[1:])
    given = arguments.model or first or variables.get("MODEL_PATH")
    if given is None:
        raise UserError("evaluate: which model? Give a run directory, as in: segformer-spark evaluate runs/NAME")
    if others and arguments.model is not None:
        raise UserError("evaluate: --model names one model; an ensemble is given as evaluate A B --output DIR")
    if others and arguments.output is None and "OUTPUT" not in variables:
        raise UserError("evaluate: results of an ensemble belong to no run: give --output")
    average = arguments.average_checkpoints
    if average is None:
        model, own_run = locate_model(Path(given))
    else:
        if others or arguments.model is not None or not RunDirectory(Path(given)).is_run():
            raise UserError("--average-checkpoints is of one run, as in: segformer-spark evaluate runs/NAME")
        model, own_run = Path(given) / f"average-{average}", Path(given)
    run = first if first is not None and (first / "config.yaml").is_file() else own_run
    config_file = arguments.config or (run / "config.yaml" if run is not None else None)
    if config_file is None:
        raise UserError(f"{model} does not lie in a run directory (with config.yaml): give --config")
    refuse_unused("evaluate", arguments.overrides, _USED_BY_EVALUATE, (), _OPTIONS)
    environment = os.environ if arguments.from_env else None
    load = load_config if arguments.config else load_stored_config
    resolved = load(config_file, overrides=arguments.overrides, environment=environment)
    refuse_without_effect(arguments.overrides, resolved.config)
    split = arguments.split or variables.get("SPLIT") or resolved.config.data.val_split
    tta, crops = arguments.tta or variables.get("TTA"), choice(arguments, variables, "crops", CROPS)
    decision = choice(arguments, variables, "decision", DECISIONS) or "argmax"
    _refuse_comparison(arguments, asked=tta is not None or decision != "argmax")
    output = arguments.output or variables.get("OUTPUT")
    hardware, precision, batch_size = inference_settings(arguments)
    if output is None and (own_run is None or run is None or real_path(own_run) != real_path(run)):
        raise UserError(f"{model} is not a model of the run: give --output, so that results of two models do not mix")
    if output is None:
        # Another model, augmentation, view or precision has a folder of its own.
        name = model_name(model)
        parts = [split, "" if name in ("best", ENSEMBLE) else name, "" if tta in (None, "none") else tta]
        parts.append("" if arguments.shard is None else "shard_{}_of_{}".format(*arguments.shard))
        parts.append("inference" if arguments.compare_inference else "")
        parts.append("decision_saved" if decision == "saved" else "")
        parts.append("" if crops is None else f"crops_{crops}")
        for section in ("inference", "data.cross_validation"):
            parts += [f"{name}_{value}" for name, value in sorted(resolved.overridden(section).items())]
        parts.append("" if precision == "fp32" else precision)
        output = Path(str(run)) / "evaluation" / "-".join(part for part in parts if part)
    with joined(hardware) as group:
        from segformer_spark.checkpoint.averaged import export_average, newest_few
        from segformer_spark.evaluation.choose_decision import choose_decision
        from segformer_spark.evaluation.compare_inference import DEFAULT_TTA, CompareOptions
        from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
        from segformer_spark.evaluation.session import InferenceSettings

        if arguments.from_env and group.is_main:
            name_unused_variables("evaluate", (*_USED_BY_EVALUATE, *FROM_ENVIRONMENT))
        settings = InferenceSettings(
            precision=precision, batch_size=batch_size, tta=tta, crops=crops, use_saved=decision == "saved"
        )
        if arguments.compare_inference:
            comparing = CompareOptions(
                group_by=arguments.group_by,
                tta=DEFAULT_TTA if arguments.try_tta is None else tuple(arguments.try_tta),
                windows=tuple(arguments.try_windows),
                time_limit=arguments.time_limit,
            )
            choose_decision(
                *(resolved, model, split, Path(output), settings, comparing, group), save=arguments.save_decision
            )
        else:
            options = EvaluateOptions(
                *(model, split, Path(output), arguments.worst, arguments.examples, settings, others),
                group_by=arguments.group_by,
                spacing=tuple(arguments.spacing),
                shard=arguments.shard,
            )
            if average is not None:
                own = RunDirectory(Path(given))
                group.on_main(lambda: export_average(own, newest_few(own.checkpoints, average), model))
            run_evaluation(resolved, options, group)
    return 0


def _evaluate_files(arguments: argparse.Namespace) -> int:
    """Evaluations that need no model."""
    from segformer_spark.config.load import load_config
    from segformer_spark.evaluation.score_predictions import merge_evaluations, score_predictions

    given = {
        "a run": bool(arguments.run),
        "--model": arguments.model is not None,
        "--shard": arguments.shard is not None,
        "--compare-inference": arguments.compare_inference,
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"--merge and --predictions ask no model: leave {name} out")
    if arguments.output is None:
        raise UserError("evaluate: --merge and --predictions need --output")
    if arguments.merge is not None:
        if arguments.predictions is not None:
            raise UserError("evaluate: give --merge or --predictions, not both")
        merge_evaluations(arguments.merge, arguments.output)
        return 0
    own = [f"data.dataset={arguments.dataset}"] if arguments.dataset is not None else []
    own += [f"data.root={arguments.root}"] if arguments.root is not None else []
    data = load_config(arguments.config, overrides=[*own, *arguments.overrides]).config.data
    split = arguments.split or data.val_split
    spacing = (arguments.spacing[0], arguments.spacing[1])
    score_predictions(arguments.predictions, data, split, arguments.output, arguments.group_by, spacing)
    return 0


def _refuse_comparison(arguments: argparse.Namespace, *, asked: bool) -> None:
    """Raise UserError for options of a comparison without one, and for what it tries itself.

    Args:
        asked: whether an augmentation or a decision was given, by option or environment.
    """
    if arguments.compare_inference:
        if arguments.shard is not None or arguments.run[1:]:
            raise UserError("--compare-inference asks one model for the whole split: no --shard, no second model")
        if asked:
            raise UserError("--compare-inference tries decisions and augmentations: leave --decision, --tta out")
        return
    given = {"--save-decision": arguments.save_decision, "--try-tta": arguments.try_tta is not None}
    given["--try-windows"] = bool(arguments.try_windows)
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"{name} goes with --compare-inference")
