"""`checkpoints`: those of a run listed, pruned, and made a model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import Subparsers, add_actions, add_verb, not_negative, positive

if TYPE_CHECKING:
    from segformer_spark.run.directory import RunDirectory


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "checkpoints", "List, prune or export the checkpoints of a run.")
    parser = add_verb(
        actions,
        "list",
        "Step, size and state of every checkpoint; status 1 if one is damaged.",
        "segformer-spark checkpoints list runs/spark_b2_512",
        list_all,
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser = add_verb(
        actions,
        "prune",
        "Remove all but the newest checkpoints, that of the best model, and those of every N-th step.",
        "segformer-spark checkpoints prune runs/spark_b2_512 --keep 2 --keep-every 1000",
        prune,
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument(
        "--keep", type=positive, default=None, help="newest that stay, two at least (default: the run's)"
    )
    parser.add_argument("--keep-every", type=positive, default=None, help="N (default: the run's)")
    parser = add_verb(
        actions,
        "export",
        "The weights of a checkpoint as a model folder, which evaluate, predict, submit and export take.",
        "segformer-spark checkpoints export runs/spark_b2_512 --step 1200 --output models/step_1200",
        export,
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--step", type=not_negative, default=None, help="(default: the newest)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")


def list_all(arguments: argparse.Namespace) -> int:
    """Print a line per checkpoint."""
    from segformer_spark.checkpoint.names import checkpoint_folders, step_of
    from segformer_spark.checkpoint.store import lost_newest, verify

    run = _run(arguments.run)
    best, status = _best_step(run), ExitCode.GOOD
    present = checkpoint_folders(run.checkpoints)
    for path in present:
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        try:
            verify(path)
            state = "intact"
        except CheckpointError as error:
            state, status = error.problem, ExitCode.FOUND_WRONG
        mark = "  best model" if step_of(path) == best else ""
        print(f"step {step_of(path):>9}  {size / 2**20:>9.1f} MiB  {state}{mark}")
    lost = lost_newest(run.checkpoints)
    if lost is not None:
        print(f"the newest, of step {lost}, is gone")
        status = ExitCode.FOUND_WRONG
    elif not present:
        print(f"{run.checkpoints}: no checkpoints yet")
    return status


def prune(arguments: argparse.Namespace) -> int:
    """Remove what nothing keeps."""
    from segformer_spark.checkpoint.store import CheckpointStore
    from segformer_spark.run.lease import Owner, refuse_if_leased

    run = _run(arguments.run)
    refuse_if_leased(run.path, Owner.here(os.environ))
    output = run.load_config().config.output
    keep, every = arguments.keep or output.keep_checkpoints, arguments.keep_every or output.keep_every
    removed = CheckpointStore(run.checkpoints, keep, every).prune(_best_step(run))
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} checkpoints removed")
    return ExitCode.GOOD


def export(arguments: argparse.Namespace) -> int:
    """Write a model folder."""
    from segformer_spark.checkpoint.averaged import export_average, newest_few
    from segformer_spark.checkpoint.names import step_name
    from segformer_spark.run.console import setup_logging

    setup_logging(0, 1)
    run = _run(arguments.run)
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: this exists", "Remove it, or give another --output.")
    if arguments.step is None:
        chosen = newest_few(run.checkpoints, 1)
    else:
        chosen = [run.checkpoints / step_name(arguments.step)]
        if not chosen[0].is_dir():
            raise UserError(f"{chosen[0]}: there is no such checkpoint", "See: segformer-spark checkpoints list RUN.")
    export_average(run, chosen, arguments.output)
    return ExitCode.GOOD


def _run(path: Path) -> RunDirectory:
    from segformer_spark.run.directory import RunDirectory

    run = RunDirectory(path)
    if not run.is_run():
        raise UserError(f"{path}: this is not a run directory, it has no config.yaml")
    return run


def _best_step(run: RunDirectory) -> int | None:
    """The step of the best model; None without one."""
    from segformer_spark.checkpoint.export import read_card

    try:
        return read_card(run.best).step
    except CheckpointError:
        return None
