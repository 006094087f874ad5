"""`demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import Subparsers, add_set, add_verb


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "demo",
        "Render a small set, train, evaluate and write a submission, on this machine's CPU.",
        "segformer-spark demo",
        demo,
    )
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: configs/demo.yaml)")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data/demo"), help="folder of the rendered set (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="training processes (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=600, help="rendered training images (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=100, help="rendered validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=20, help="rendered test images (default: %(default)s)")
    add_set(parser)


def demo(arguments: argparse.Namespace) -> int:
    """Render, train, evaluate and submit on this machine."""
    from segformer_spark.demo import DemoOptions, run_demo
    from segformer_spark.run.console import setup_logging

    setup_logging()
    run_demo(
        DemoOptions(
            config=arguments.config,
            data_root=arguments.data_root,
            processes=arguments.processes,
            num_images=(arguments.num_train, arguments.num_val, arguments.num_test),
            overrides=tuple(arguments.overrides),
        )
    )
    return 0
