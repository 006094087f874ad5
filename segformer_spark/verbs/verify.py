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
        "Check that a run, model, checkpoint, evaluation, comparison, report, submission or data set is what was "
        "written: digests of all files, and every metric computed anew. Needs no GPU and changes nothing.",
        "segformer-spark verify runs/spark_b2_512",
        verify,
    )
    parser.add_argument("path", type=Path, help="its folder")


def verify(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when something is wrong."""
    from segformer_spark.run.console import setup_logging
    from segformer_spark.verification.kinds import verify_path

    setup_logging(0, 1)
    kind, found = verify_path(arguments.path)
    for fault in found.faults:
        print(f"wrong: {fault}")
    lists = {"computed anew": found.recomputed, "digest only": found.hashed, "no digest": found.unchecked}
    for what, names in lists.items():
        if names or what == "computed anew":
            print(f"{what + ':':<15}{', '.join(_by_folder(names)) or 'nothing'}")
    if found.digest is not None:
        print(f"sha256 of SHA256SUMS: {found.digest}")
    print(f"{arguments.path} ({kind}): " + (f"{len(found.faults)} faults" if found.faults else "as it was written"))
    return ExitCode.FOUND_WRONG if found.faults else ExitCode.GOOD


def _by_folder(names: list[str]) -> list[str]:
    """Files of folders as one entry each; what is counted already stays."""
    single = [name for name in names if "/" not in name or name.endswith(")")]
    inside = Counter(name.rpartition("/")[0] for name in names if name not in single)
    return single + [f"{name}/ ({count} files)" for name, count in inside.items()]
