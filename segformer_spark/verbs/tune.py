"""`tune lr` and `tune batch-size`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import Subparsers, add_actions, add_config, add_from_env, add_verb, positive
from segformer_spark.verbs.launch import joined, resolve


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "tune", "Find a learning rate or a batch size before training.")
    parser = add_verb(
        actions,
        "lr",
        "LR range test: train with a rising learning rate; writes a figure and a table.",
        "segformer-spark tune lr --config configs/spark_b2.yaml --output tune/b2",
        find_lr,
    )
    add_config(parser)
    add_from_env(parser)
    parser.add_argument("--low", type=float, default=1e-7, help="first learning rate (default: %(default)s)")
    parser.add_argument("--high", type=float, default=1e-1, help="last learning rate (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("tune"), help="folder (default: %(default)s)")
    parser = add_verb(
        actions,
        "batch-size",
        "Measure micro-batches of 1, 2, 4 ... on this device: time, images per second, memory.",
        "segformer-spark tune batch-size --config configs/spark_b2.yaml",
        find_batch_size,
    )
    add_config(parser)
    add_from_env(parser)
    parser.add_argument("--limit-gib", type=float, default=None, help="memory to use (default: what the device has)")
    parser.add_argument("--largest", type=positive, default=128, help="stop at this size (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("tune"), help="folder (default: %(default)s)")


def find_lr(arguments: argparse.Namespace) -> int:
    """Run the LR range test."""
    resolved = resolve(arguments)
    with joined(resolved.config.hardware) as group:
        from segformer_spark.run.console import logger
        from segformer_spark.training import tune

        result = tune.find_lr(
            resolved.config,
            group,
            low=arguments.low,
            high=arguments.high,
            num_steps=arguments.steps,
            output=arguments.output,
        )
        if group.is_main:
            found = "the loss never fell" if result.suggestion is None else f"{result.suggestion:.2e}"
            logger.info(
                "steepest fall at %s; configured %.2e. A tenth to all of it is a good peak.",
                found,
                resolved.config.training.optimizer.lr,
            )
            logger.info("figure: %s", arguments.output / "lr_range.png")
    return 0


def find_batch_size(arguments: argparse.Namespace) -> int:
    """Measure batch sizes."""
    resolved = resolve(arguments)
    with joined(resolved.config.hardware) as group:
        from segformer_spark.data.registry import open_dataset
        from segformer_spark.run.console import logger
        from segformer_spark.training import tune

        config = resolved.config
        dataset = open_dataset(config.data, config.data.train_split, check_files=False)
        trials = tune.find_batch_size(
            config, dataset.classes.names, group, limit_gib=arguments.limit_gib, largest=arguments.largest
        )
        best = tune.recommend(trials)
        if group.is_main:
            tune.write_batch_sizes(trials, arguments.output)
            logger.info(
                "training.batch_size=%d: the smallest within 2 %% of the best throughput; %d was the largest measured",
                best.micro_batch,
                trials[-1].micro_batch,
            )
            logger.info("table: %s", arguments.output / "batch_size.csv")
    return 0
