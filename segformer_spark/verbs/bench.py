"""`bench`: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import Subparsers, add_actions, add_config, add_from_env, add_verb, positive
from segformer_spark.verbs.launch import joined, resolve


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "bench", "Measure.")
    parser = add_verb(
        actions,
        "scaling",
        "Measure training on the ranks that srun or torchrun started, and add a line to a CSV.",
        "srun --nodes=2 python -m segformer_spark bench scaling --config configs/spark_b2.yaml --csv scaling.csv",
        scaling,
    )
    add_config(parser)
    add_from_env(parser)
    parser.add_argument("--steps", type=positive, default=20, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--strong",
        action="store_true",
        help="keep the configured global batch, so that each rank has less to do (default: keep the micro-batch)",
    )
    parser.add_argument("--csv", type=Path, default=Path("scaling.csv"), help="(default: %(default)s)")


def scaling(arguments: argparse.Namespace) -> int:
    """Measure, and add a line to the table."""
    resolved = resolve(arguments)
    with joined(resolved.config.hardware) as group:
        from segformer_spark.bench.scaling import add_row, describe, measure_throughput

        config = resolved.config
        if not arguments.strong:
            weak = {"global_batch_size": None, "accumulation_steps": None}
            config = config.model_copy(update={"training": config.training.model_copy(update=weak)})
        row = measure_throughput(config, group, arguments.steps)
        row = group.main_only(lambda: add_row(arguments.csv, row))
        if group.is_main:
            print(describe(row))
            print(f"table: {arguments.csv}")
    return 0
