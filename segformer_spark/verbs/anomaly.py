"""`anomaly`: detect anomalies in a test split."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer_spark.anomaly.methods import FEATURES, FITTED, LOGIT_STATISTICS, METHODS, PLAIN
from segformer_spark.verbs.arguments import (
    PRECISIONS,
    Subparsers,
    add_actions,
    add_from_env,
    add_set,
    add_verb,
    not_negative,
    positive,
    positive_number,
)
from segformer_spark.verbs.launch import joined
from segformer_spark.verbs.overrides import READING, refuse_unused, refuse_without_effect

if TYPE_CHECKING:
    from segformer_spark.anomaly.features import MapScore
    from segformer_spark.anomaly.scores import Score
    from segformer_spark.config.load import ResolvedConfig
    from segformer_spark.distributed.process_group import Group
    from segformer_spark.evaluation.session import Session
    from segformer_spark.run.directory import RunDirectory

_USED = (
    *("data.dataset", "data.root", "data.train_split", "data.num_workers", "data.folder", *READING),
    *("inference", "hardware"),
)
_ALL = "all"
_NOT_USED = ("inference.crops", "inference.crop_margin", "hardware.compile")


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "anomaly", "Score pixels that belong to no class, and measure it.")
    parser = add_verb(
        actions,
        "fit",
        "Gather the statistics of training data that some scores need.",
        "segformer-spark anomaly fit runs/streets",
        fit,
    )
    _add_common(parser)
    parser.add_argument("--split", default=None, help="(default: the training split)")
    parser.add_argument("--methods", nargs="+", choices=FITTED, default=FITTED, help="(default: all that need it)")
    parser.add_argument(
        "--pixels-per-image", type=positive, default=4096, help="that count for class means (default: %(default)s)"
    )
    parser = add_verb(
        actions,
        "eval",
        "AUROC, AUPR and FPR at 95 % recall of several scores, per image and pooled, of one run or several.",
        "segformer-spark anomaly eval runs/streets --methods msp max_logit",
        evaluate,
    )
    _add_common(parser)
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(*METHODS, _ALL),
        default=PLAIN,
        help="all, or some of them (default: the five without fitting)",
    )
    parser.add_argument(
        "--temperature",
        type=positive_number,
        default=1.0,
        help="of energy alone (default: %(default)s)",
    )
    parser.add_argument("--panels", type=int, default=4, help="draw the first so many images (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="results of one run (default: <run>/anomaly/<split>), or of several runs the table of all (default: "
        "anomaly, or the study's folder)",
    )
    _add_operating_points(parser)


def _add_operating_points(parser: argparse.ArgumentParser) -> None:
    """Thresholds that are fitted on some images and judged on others."""
    parser.add_argument(
        "--operating-points",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit thresholds on half of the split's towns and judge them on the other half (default: on)",
    )
    parser.add_argument("--recall", type=_share, default=0.95, help="to be reached (default: %(default)s)")
    parser.add_argument("--fpr", type=_share, default=0.05, help="not to be exceeded (default: %(default)s)")
    parser.add_argument(
        "--fpr-split", default=None, metavar="SPLIT", help="fit the false-positive rate there, such as on val"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of the halves (default: %(default)s)")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="*", help="run directories, or model folders in them")
    parser.add_argument("--study", type=Path, default=None, help="all finished runs of a study file")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=8, help="images to load at a time (default: %(default)s)"
    )
    add_from_env(parser, "DATA_ROOT and, for runs of a study, SAVE_PATH")
    add_set(parser)


def _run_of(path: Path) -> RunDirectory:
    """The run that a model lies in.

    Raises:
        UserError: it lies in none.
    """
    from segformer_spark.errors import UserError
    from segformer_spark.run.directory import RunDirectory, locate_model

    _, run = locate_model(path)
    if run is None:
        raise UserError(f"anomaly: {path} does not lie in a run directory")
    return RunDirectory(run)


def _environment(arguments: argparse.Namespace, name: str) -> dict[str, str] | None:
    """This variable alone, with --from-env: the others are for training."""
    return {name: os.environ[name]} if arguments.from_env and name in os.environ else None


def _configured(path: Path, arguments: argparse.Namespace) -> ResolvedConfig:
    """The run's stored configuration with the overrides that have an effect here."""
    from segformer_spark.config.stored import load_stored_config

    refuse_unused("anomaly", arguments.overrides, _USED, _NOT_USED, {"training.precision": "--precision"})
    environment = _environment(arguments, "DATA_ROOT")
    resolved = load_stored_config(_run_of(path).config, overrides=arguments.overrides, environment=environment)
    refuse_without_effect(arguments.overrides, resolved.config)
    return resolved


def _open_session(path: Path, arguments: argparse.Namespace, split: str | None, group: Group) -> Session:
    """The model with the split that it is asked about; None: the training split."""
    from segformer_spark.evaluation.session import InferenceSettings, Session

    resolved = _configured(path, arguments)
    config = resolved.config
    settings = InferenceSettings(
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        crops="none",
        view=resolved.overridden("inference"),
        num_workers=config.data.num_workers,
    )
    session = Session.open(path, settings, group, config.data, split or config.data.train_split)
    session.refuse_several("anomaly")
    return session


def fit(arguments: argparse.Namespace) -> int:
    """Write the statistics into every run."""
    paths = [one.path for one in _select("fit", arguments).models]
    with joined(_configured(paths[0], arguments).config.hardware) as group:
        for path in paths:
            written = _fit_run(path, arguments, group)
            if group.is_main:
                print("\n".join(f"statistics: {file}" for file in written))
    return 0


def _fit_run(path: Path, arguments: argparse.Namespace, group: Group) -> list[Path]:
    from segformer_spark.anomaly.features import write_features
    from segformer_spark.anomaly.fit import fit_features, fit_statistics
    from segformer_spark.anomaly.scores import write_statistics

    run, session, written = _run_of(path), _open_session(path, arguments, arguments.split, group), []
    step, names = session.card.step, session.labelled().classes.names
    of_features = bool(set(FEATURES) & set(arguments.methods))
    if of_features:
        session.predictor.refuse_windows()
    if set(LOGIT_STATISTICS) & set(arguments.methods):
        statistics = fit_statistics(session)
        written.append(run.anomaly_statistics)
        group.on_main(lambda: write_statistics(run.anomaly_statistics, statistics, names, step))
    if of_features:
        features = fit_features(session, arguments.pixels_per_image)
        origin = {"model_step": str(step), "pixels_per_image": str(arguments.pixels_per_image)}
        written.append(run.anomaly_features)
        group.on_main(lambda: write_features(run.anomaly_features, features, names, origin))
    return written


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the scores of one model or of several."""
    from segformer_spark.anomaly.comparison import JOINED, read_metrics, write_joined

    selection = _select("eval", arguments)
    chosen = selection.models
    hardware = _configured(chosen[0].path, arguments).config.hardware
    with joined(hardware) as group:
        for one in chosen:
            _evaluate_run(one, arguments, group)
        if arguments.study is None and len(chosen) == 1:
            return 0
        folder = arguments.output or selection.folder

        def join() -> None:
            found = {one.label: read_metrics(one.output) for one in chosen}
            write_joined(found, selection.published, folder)
            print(f"{JOINED}\ntable and figure of all models: {folder / 'anomaly.csv'}")

        group.on_main(join)
    return 0


@dataclass(frozen=True)
class _Chosen:
    """A model to be evaluated, its name in tables, and where its results go."""

    label: str
    path: Path
    output: Path


@dataclass(frozen=True)
class _Selection:
    """The models, {label: what was published about it}, and where the table of all goes."""

    models: list[_Chosen]
    published: Mapping[str, Mapping[str, Any]]
    folder: Path


def _select(action: str, arguments: argparse.Namespace) -> _Selection:
    """The runs of the command line, or the finished ones of a study."""
    from segformer_spark.errors import UserError

    if bool(arguments.runs) == (arguments.study is not None):
        raise UserError(
            f"anomaly {action}: give runs, or a study with --study", f"Such as anomaly {action} runs/streets"
        )
    if arguments.study is None:
        own = getattr(arguments, "output", None) if len(arguments.runs) == 1 else None
        given = [_chosen(_run_of(path).path.name, path, arguments, own) for path in arguments.runs]
        for what, values in (
            ("name", [one.label for one in given]),
            ("folder of results", [one.output for one in given]),
        ):
            if len(set(values)) < len(values):
                raise UserError(
                    f"anomaly {action}: two of the models have one {what}: {', '.join(map(str, arguments.runs))}",
                    "Evaluate them one after another, each with its own --output.",
                )
        return _Selection(given, {}, Path("anomaly"))
    from segformer_spark.config.study import anomaly_references, read_study
    from segformer_spark.run.outcome import FINISHED
    from segformer_spark.study.execute import plan_runs

    study = read_study(arguments.study)
    # By their folders: what is set here is for the evaluation, and need not be what they were trained with.
    finished = [one for one in plan_runs(study, (), _environment(arguments, "SAVE_PATH")) if one.state in FINISHED]
    if not finished:
        raise UserError(f"{study.path}: no run is finished yet; train them first: compare run {study.path}")
    published = anomaly_references(study, [one.run for one in finished])
    chosen = [
        _chosen(label, one.directory.path, arguments, None) for label, one in zip(published, finished, strict=True)
    ]
    return _Selection(chosen, published, study.folder)


def _chosen(label: str, path: Path, arguments: argparse.Namespace, output: Path | None) -> _Chosen:
    return _Chosen(label, path, output or _run_of(path).anomaly / (arguments.split or ""))


def _evaluate_run(chosen: _Chosen, arguments: argparse.Namespace, group: Group) -> None:
    from segformer_spark.anomaly.evaluate import evaluate_scores, negative_rankings, write_results
    from segformer_spark.anomaly.operating_points import OperatingPoints, split_in_halves
    from segformer_spark.run.console import logger
    from segformer_spark.run.record import result_record
    from segformer_spark.run.system import now

    started, run = now(), _run_of(chosen.path)
    session = _open_session(chosen.path, arguments, arguments.split, group)
    scores, map_scores = _scores(arguments, session, run)
    halves = split_in_halves(session.labelled(), arguments.seed) if arguments.operating_points else None
    if arguments.operating_points and halves is None and group.is_main:
        logger.warning("no operating points: thresholds are fitted on some towns and judged on others, here is one")
    results = evaluate_scores(
        session, scores, map_scores, panels=chosen.output / "panels", num_panels=arguments.panels, halves=halves
    )
    elsewhere = None
    if halves is not None and arguments.fpr_split is not None:
        other = _open_session(chosen.path, arguments, arguments.fpr_split, group)
        elsewhere = (arguments.fpr_split, negative_rankings(other, scores, map_scores))
    facts = {
        "started": started,
        "model": str(chosen.path),
        "model_step": session.card.step,
        "split": arguments.split,
        "temperature": arguments.temperature,
        "precision": arguments.precision,
        "inference": session.view.config.model_dump(),
        "world_size": group.world_size,
        "operating_points": {"recall": arguments.recall, "fpr": arguments.fpr, "seed": arguments.seed},
    }
    record = result_record(group.device, **facts)
    points = None
    if halves is not None:
        points = OperatingPoints(halves, arguments.recall, arguments.fpr, elsewhere)
    rows = group.on_main(lambda: write_results(results, chosen.label, chosen.output, record, points))
    if group.is_main:
        for row in rows:
            print(
                f"{row['method']:<24}{row['protocol']:<11}AUROC {row['auroc']}  AUPR {row['aupr']}  "
                f"FPR95 {row['fpr95']}"
            )
        print(f"tables and figures: {chosen.output}")


def _scores(
    arguments: argparse.Namespace, session: Session, run: RunDirectory
) -> tuple[dict[str, Score], dict[str, MapScore]]:
    """The methods that were asked for, with the statistics that they need."""
    from segformer_spark.anomaly.features import build_map_score, read_features
    from segformer_spark.anomaly.scores import build_score, read_statistics

    names, step = session.labelled().classes.names, session.card.step
    methods = METHODS if _ALL in arguments.methods else arguments.methods
    of_logits = [method for method in methods if method not in FEATURES]
    of_features = [method for method in methods if method in FEATURES]
    fitted = bool(set(LOGIT_STATISTICS) & set(of_logits))
    statistics = read_statistics(run.anomaly_statistics, names, step) if fitted else None
    temperature = arguments.temperature
    scores = {method: build_score(method, temperature=temperature, statistics=statistics) for method in of_logits}
    if not of_features:
        return scores, {}
    features = read_features(run.anomaly_features, names, step)
    return scores, {name: build_map_score(name, features) for name in of_features}
