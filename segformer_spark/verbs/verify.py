"""`verify`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import Subparsers, add_verb


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "verify",
        "Check that an evaluation is what was written: digests of all files, and every metric computed anew from the "
        "stored counts. Needs no model and changes nothing.",
        "segformer-spark verify runs/spark_b2_512/evaluation/val",
        verify,
    )
    parser.add_argument("path", type=Path, help="folder that `evaluate` wrote")


def verify(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when something is wrong."""
    from segformer_spark.evaluation.verify import verify_evaluation

    found = verify_evaluation(arguments.path)
    for fault in found.faults:
        print(f"wrong: {fault}")
    print(f"computed anew: {'; '.join(found.recomputed) or 'nothing'}")
    print(f"digest only:   {', '.join(_by_folder(found.hashed)) or 'nothing'}")
    print(f"sha256 of SHA256SUMS: {found.digest or 'there is none'}")
    print(f"{arguments.path}: " + (f"{len(found.faults)} faults" if found.faults else "as it was written"))
    return ExitCode.FOUND_WRONG if found.faults else ExitCode.GOOD


def _by_folder(names: list[str]) -> list[str]:
    """Files of folders as one entry each."""
    inside = Counter(name.split("/")[0] for name in names if "/" in name)
    return [name for name in names if "/" not in name] + [f"{name}/ ({count} files)" for name, count in inside.items()]
