"""`report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import Subparsers, add_verb


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "report",
        "One file, report.html, of a run with its evaluations, or of one evaluation: figures, scores with intervals, "
        "confusion matrix and images; opens from disk without a request. Also report.md.",
        "segformer-spark report runs/spark_b2_512",
        report,
    )
    parser.add_argument("path", type=Path, help="run directory, or folder that `evaluate` wrote")


def report(arguments: argparse.Namespace) -> int:
    """Write the report."""
    from segformer_spark.report.render import write_report

    path = write_report(arguments.path)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB), {path.with_suffix('.md').name}")
    return 0
