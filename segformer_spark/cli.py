"""The command line: which verbs there are. Each stands in its own file in verbs/."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from segformer_spark import __version__
from segformer_spark.errors import UserError
from segformer_spark.verbs import data, demo, doctor, inference, params, runs, train, tune, weights
from segformer_spark.verbs.arguments import Verb


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `segformer-spark` and `python -m segformer_spark`; leaves with the verb's status."""
    arguments = build_parser().parse_args(argv)
    verb: Verb = arguments.verb
    try:
        status = verb(arguments)
    except UserError as error:
        _print_error(error)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.exit(status)


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="segformer-spark",
        description="Train, evaluate and submit SegFormer on SPARK, on one process or many nodes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (demo, data, weights, params, train, tune, doctor, inference, runs):
        module.add(subparsers)
    return parser


def _print_error(error: UserError) -> None:
    """Rank 0 speaks for errors that all ranks share; an error of one rank alone names it."""
    from segformer_spark.distributed.environment import detect_launch

    try:
        launch = detect_launch(os.environ)
    except UserError:
        launch = None
    if launch is None or launch.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif not getattr(error, "shared", False):
        import socket

        print(f"error on rank {launch.rank} ({socket.gethostname()}): {error}", file=sys.stderr, flush=True)
