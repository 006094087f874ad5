"""`anomaly`: detect anomalies in a test split."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.anomaly.methods import FEATURES, FITTED, LOGIT_STATISTICS, METHODS, PLAIN
from segformer_spark.verbs.arguments import (
    PRECISIONS,
    Subparsers,
    add_actions,
    add_set,
    add_verb,
    positive,
    positive_number,
)
from segformer_spark.verbs.launch import joined
from segformer_spark.verbs.overrides import READING, refuse_unused, refuse_without_effect

if TYPE_CHECKING:
    from segformer_spark.evaluation.session import Session
    from segformer_spark.run.directory import RunDirectory

_USED = (
    *("data.dataset", "data.root", "data.train_split", "data.num_workers", "data.folder", *READING),
    *("inference", "hardware"),
)
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
        "AUROC, AUPR and FPR at 95 % recall of several scores, per image and pooled.",
        "segformer-spark anomaly eval runs/streets --methods msp max_logit",
        evaluate,
    )
    _add_common(parser)
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=PLAIN, help="(default: all without fitting)")
    parser.add_argument(
        "--temperature",
        type=positive_number,
        default=1.0,
        help="of energy alone (default: %(default)s)",
    )
    parser.add_argument("--panels", type=int, default=4, help="draw the first so many images (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="(default: <run>/anomaly/<split>)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, or a model folder in it")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=8, help="images to load at a time (default: %(default)s)"
    )
    add_set(parser)


@contextmanager
def _opened(arguments: argparse.Namespace, split: str | None) -> Iterator[tuple[Session, RunDirectory]]:
    """The model with the split that it is asked about (None: the training split), and its run."""
    from segformer_spark.config.stored import load_stored_config
    from segformer_spark.errors import UserError
    from segformer_spark.run.directory import RunDirectory, locate_model

    refuse_unused("anomaly", arguments.overrides, _USED, _NOT_USED, {"training.precision": "--precision"})
    _, run = locate_model(arguments.run)
    if run is None:
        raise UserError(f"anomaly: {arguments.run} does not lie in a run directory")
    resolved = load_stored_config(run / "config.yaml", overrides=arguments.overrides)
    refuse_without_effect(arguments.overrides, resolved.config)
    config = resolved.config
    with joined(config.hardware) as group:
        from segformer_spark.evaluation.session import InferenceSettings, Session

        settings = InferenceSettings(
            precision=arguments.precision,
            batch_size=arguments.batch_size,
            crops="none",
            view=resolved.overridden_inference(),
            num_workers=config.data.num_workers,
        )
        session = Session.open(arguments.run, settings, group, config.data, split or config.data.train_split)
        yield session, RunDirectory(run)


def fit(arguments: argparse.Namespace) -> int:
    """Write the statistics into the run."""
    with _opened(arguments, arguments.split) as (session, run):
        from segformer_spark.anomaly.features import write_features
        from segformer_spark.anomaly.fit import fit_features, fit_statistics
        from segformer_spark.anomaly.scores import write_statistics

        group, step, written = session.group, session.card.step, []
        names = session.labelled().classes.names
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
        if group.is_main:
            print("\n".join(f"statistics: {path}" for path in written))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the scores."""
    with _opened(arguments, arguments.split) as (session, run):
        from segformer_spark.anomaly.evaluate import evaluate_scores, write_results
        from segformer_spark.anomaly.features import build_map_score, read_features
        from segformer_spark.anomaly.scores import build_score, read_statistics
        from segformer_spark.run.record import result_record
        from segformer_spark.run.system import now

        started, group, step = now(), session.group, session.card.step
        names, temperature = session.labelled().classes.names, arguments.temperature
        of_logits = [method for method in arguments.methods if method not in FEATURES]
        of_features = [method for method in arguments.methods if method in FEATURES]
        fitted = bool(set(LOGIT_STATISTICS) & set(of_logits))
        statistics = read_statistics(run.anomaly_statistics, names, step) if fitted else None
        scores = {method: build_score(method, temperature=temperature, statistics=statistics) for method in of_logits}
        map_scores = {}
        if of_features:
            features = read_features(run.anomaly_features, names, step)
            map_scores = {name: build_map_score(name, features) for name in of_features}
        output = arguments.output or run.anomaly / arguments.split
        results = evaluate_scores(session, scores, map_scores, panels=output / "panels", num_panels=arguments.panels)
        facts = {
            "started": started,
            "model": str(arguments.run),
            "model_step": step,
            "split": arguments.split,
            "temperature": temperature,
            "precision": arguments.precision,
            "inference": session.view.config.model_dump(),
            "world_size": group.world_size,
        }
        record = result_record(group.device, **facts)
        rows = group.on_main(lambda: write_results(results, run.path.name, output, record))
        if group.is_main:
            for row in rows:
                print(
                    f"{row['method']:<24}{row['protocol']:<11}AUROC {row['auroc']}  AUPR {row['aupr']}  "
                    f"FPR95 {row['fpr95']}"
                )
            print(f"tables and figures: {output}")
    return 0
