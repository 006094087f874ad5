"""`doctor`: self-tests on the user's own configuration."""

from __future__ import annotations

import argparse

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_config, add_from_env, add_verb, positive
from segformer_spark.verbs.launch import joined, resolve


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        "Check that training does what it should here: with --parity, that DDP, ZeRO-1 and ZeRO-2 agree.",
        "torchrun --nproc-per-node 2 -m segformer_spark doctor --parity --config configs/spark_b2.yaml",
        doctor,
    )
    add_config(parser)
    add_from_env(parser)
    parser.add_argument(
        "--parity", action="store_true", help="train the first steps under stages 0, 1 and 2 and compare"
    )
    parser.add_argument("--steps", type=positive, default=3, help="optimizer steps (default: %(default)s)")


def doctor(arguments: argparse.Namespace) -> int:
    """Run the checks that were asked for; status 1 when one fails."""
    if not arguments.parity:
        raise UserError("doctor: which check? Give --parity")
    resolved = resolve(arguments)
    with joined(resolved.config.hardware) as group:
        from segformer_spark.training.parity import compare_stages, describe

        parity = compare_stages(resolved.config, group, arguments.steps)
        if group.is_main:
            print("\n".join(describe(parity)))
    return 0 if parity.holds else 1
