"""`anomaly`: detect anomalies in a test split."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from segformer_spark.distributed.process_group import Group

_STATISTICS = "anomaly/statistics.json"
_FEATURES = "anomaly/features.safetensors"
_PLAIN = ("msp", "max_logit", "energy", "entropy", "margin")
_OF_FEATURES = ("mahalanobis", "heat", "heat_hybrid")
_FITTED = ("standardized_max_logit", *_OF_FEATURES)


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
    parser.add_argument("--methods", nargs="+", choices=_FITTED, default=_FITTED, help="(default: all that need it)")
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
    parser.add_argument(
        "--methods", nargs="+", choices=(*_PLAIN, *_FITTED), default=_PLAIN, help="(default: all without fitting)"
    )
    parser.add_argument(
        "--temperature",
        type=positive_number,
        default=1.0,
        help="of energy alone (default: %(default)s)",
    )
    parser.add_argument("--panels", type=int, default=4, help="draw the first so many images (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="(default: <run>/anomaly/<split>)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=4, help="images to load at a time (default: %(default)s)"
    )
    add_set(parser)


@contextmanager
def _opened(arguments: argparse.Namespace, split: str | None) -> Iterator[tuple[Group, Path, Any, Any, int, Any]]:
    """The ranks, the run, its model, data set, the model's optimizer step, and loading."""
    from segformer_spark.config.load import load_config
    from segformer_spark.errors import UserError
    from segformer_spark.run.directory import locate_model

    folder, run = locate_model(arguments.run)
    if run is None:
        raise UserError(f"anomaly: {arguments.run} does not lie in a run directory")
    resolved = load_config(run / "config.yaml", overrides=arguments.overrides)
    config = resolved.config
    with joined(config.hardware) as group:
        from segformer_spark.checkpoint.export import load_model
        from segformer_spark.data.loader import EvalLoading
        from segformer_spark.data.registry import open_dataset
        from segformer_spark.evaluation.predict import Predictor

        model, card = load_model(folder)
        view = card.view(**{**resolved.overridden_inference(), "crops": "none"})
        predictor = Predictor(model.to(group.device), group.device, view, arguments.precision)
        dataset = open_dataset(config.data, split or config.data.train_split)
        if tuple(dataset.classes.names) != card.class_names:
            raise UserError(
                f"{folder} knows the classes {', '.join(card.class_names)}, the data set {config.data.dataset} has "
                f"{', '.join(dataset.classes.names)}"
            )
        yield (
            group,
            run,
            predictor,
            dataset,
            card.step,
            EvalLoading(view, arguments.batch_size, config.data.num_workers),
        )


def fit(arguments: argparse.Namespace) -> int:
    """Write the statistics into the run."""
    with _opened(arguments, arguments.split) as (group, run, predictor, dataset, step, loading):
        from segformer_spark.anomaly.features import write_features
        from segformer_spark.anomaly.fit import fit_features, fit_statistics
        from segformer_spark.anomaly.scores import write_statistics

        names, written = dataset.classes.names, []
        of_features = bool(set(_OF_FEATURES) & set(arguments.methods))
        if of_features:
            predictor.refuse_windows()
        if "standardized_max_logit" in arguments.methods:
            statistics = fit_statistics(predictor, dataset, loading, group)
            written.append(run / _STATISTICS)
            group.on_main(lambda: write_statistics(run / _STATISTICS, statistics, names, step))
        if of_features:
            features = fit_features(predictor, dataset, loading, group, arguments.pixels_per_image)
            origin = {"model_step": str(step), "pixels_per_image": str(arguments.pixels_per_image)}
            written.append(run / _FEATURES)
            group.on_main(lambda: write_features(run / _FEATURES, features, names, origin))
        if group.is_main:
            print("\n".join(f"statistics: {path}" for path in written))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the scores."""
    with _opened(arguments, arguments.split) as (group, run, predictor, dataset, step, loading):
        from segformer_spark.anomaly.evaluate import evaluate_scores, write_results
        from segformer_spark.anomaly.features import build_map_score, read_features
        from segformer_spark.anomaly.scores import FITTED, build_score, read_statistics
        from segformer_spark.run.record import result_record
        from segformer_spark.run.system import now

        started = now()
        names, temperature = dataset.classes.names, arguments.temperature
        plain = [method for method in arguments.methods if method not in _OF_FEATURES]
        needs = any(method in FITTED for method in plain)
        statistics = read_statistics(run / _STATISTICS, names, step) if needs else None
        scores = {method: build_score(method, temperature=temperature, statistics=statistics) for method in plain}
        of_features = [method for method in arguments.methods if method in _OF_FEATURES]
        map_scores = {}
        if of_features:
            features = read_features(run / _FEATURES, names, step)
            map_scores = {name: build_map_score(name, features) for name in of_features}
        output = arguments.output or run / "anomaly" / arguments.split
        results = evaluate_scores(
            predictor,
            dataset,
            loading,
            group,
            scores,
            map_scores,
            panels=output / "panels",
            num_panels=arguments.panels,
        )
        facts = {
            "started": started,
            "model": str(arguments.run),
            "model_step": step,
            "split": arguments.split,
            "temperature": temperature,
            "precision": arguments.precision,
            "inference": loading.view.config.model_dump(),
            "world_size": group.world_size,
        }
        rows = group.on_main(lambda: write_results(results, run.name, output, result_record(group.device, **facts)))
        if group.is_main:
            for row in rows:
                print(
                    f"{row['method']:<24}{row['protocol']:<11}AUROC {row['auroc']}  AUPR {row['aupr']}  "
                    f"FPR95 {row['fpr95']}"
                )
            print(f"tables and figures: {output}")
    return 0
