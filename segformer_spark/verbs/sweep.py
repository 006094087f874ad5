"""`sweep`: the runs of a sweep or a study, by array index."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import Subparsers, add_verb


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "sweep",
        "List the runs of a sweep or study; an array job trains them.",
        "segformer-spark sweep configs/sweeps/lr_seed.yaml",
        sweep,
    )
    parser.add_argument("file", type=Path, help="YAML file with base, and grid or runs; or a study's")


def sweep(arguments: argparse.Namespace) -> int:
    """Print index, name and settings of each run; every configuration is checked."""
    from segformer_spark.config.load import run_name
    from segformer_spark.config.study import read_runs, resolve_run

    runs = read_runs(arguments.file)
    for index, run in enumerate(runs):
        print(f"{index:>4}  {run_name(resolve_run(run).config)}  {' '.join(run.settings)}")
    print(f"{len(runs)} runs: sbatch --array=0-{len(runs) - 1} slurm/segformer_sweep.sh {arguments.file}")
    return 0
