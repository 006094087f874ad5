"""`train`, with its dry run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import Subparsers, add_config, add_from_env, add_verb, positive
from segformer_spark.verbs.launch import deadline, joined, resolve

if TYPE_CHECKING:
    from segformer_spark.config.load import ResolvedConfig


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "train",
        "Train a model; start it with torchrun or srun for several processes.",
        "torchrun --nproc-per-node 4 -m segformer_spark train --config configs/spark_b2.yaml --set data.root=DIR",
        train,
    )
    add_config(parser)
    add_from_env(parser, "overrides, as the batch scripts do,")
    parser.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        default=None,
        help="continue from the newest or the given checkpoint; auto,CHECKPOINT: from the given one if there is none",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run directory")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: continue although images or masks are others than before",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, batch arithmetic, steps, memory and time; write nothing",
    )
    parser.add_argument(
        "--world-size", type=positive, default=None, help="with --dry-run: number of processes to plan for"
    )
    parser.add_argument("--nodes", type=positive, default=None, help="with --dry-run: number of nodes to plan for")
    parser.add_argument(
        "--tasks-per-node", type=positive, default=4, help="with --nodes: processes per node (default: %(default)s)"
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="with --dry-run: run no forward pass, so no memory and no time"
    )


def train(arguments: argparse.Namespace) -> int:
    """Train, or describe what would run."""
    resolved = resolve(arguments)
    resume = arguments.resume or (choose_resume(resolved) if arguments.from_env else None)
    if resume is not None and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    if resume is None and arguments.accept_changes:
        raise UserError("--accept-changes goes with --resume: a new run has nothing to compare its data with")
    if arguments.dry_run:
        return _dry_run(resolved, arguments)
    from segformer_spark.training.stop import catch_signals

    # Until the ranks have met a signal ends this process at once: there is nothing to save.
    with joined(resolved.config.hardware) as group, catch_signals(deadline(os.environ)) as stop:
        from segformer_spark.run.outcome import Outcome
        from segformer_spark.training.train import TrainOptions, run_training

        cache, accept = _local_cache(resolved, arguments.from_env), arguments.accept_changes
        if arguments.from_env:
            from segformer_spark.config.environment import flag

            accept = accept or flag(os.environ, "ACCEPT_CHANGES")
        # What one node does not see yet another one may: all do what the first rank does.
        options = TrainOptions(group.broadcast(resume), arguments.overwrite, cache, accept)
        _, outcome = run_training(resolved, options, group, stop)
    return ExitCode.STOPPED if outcome is Outcome.STOPPED else ExitCode.GOOD


def choose_resume(resolved: ResolvedConfig) -> str | None:
    """RESUME, and for a job that was requeued or restarted in place its own checkpoints first.

    It resumes the run only if it had begun it: another run of the same name is not its own.
    """
    from segformer_spark.config.load import run_path
    from segformer_spark.files.visibility import wait_until_visible
    from segformer_spark.run.lease import Owner, read_attempts

    given = os.environ.get("RESUME") or None
    own, run = Owner.here(os.environ), run_path(resolved.config)

    def has_begun() -> bool:
        return any(attempt.get("job") == own.job for attempt in read_attempts(run))

    if own.is_first or not wait_until_visible(has_begun, run.parent, "what this job wrote before"):
        return given
    return "auto" if given in (None, "auto") else f"auto,{given}"


def _local_cache(resolved: ResolvedConfig, from_env: bool) -> Path | None:
    """This node's copy of the cache, where STAGE_DATA asked for one and it is there."""
    from segformer_spark.data.staging import own_folder, staged_copy, wants_staging

    data = resolved.config.data
    if not from_env or not wants_staging(os.environ) or data.cache is None:
        return None
    from segformer_spark.data.cache import find_cache

    return staged_copy(find_cache(Path(data.cache), data), own_folder(os.environ))


def _dry_run(resolved: ResolvedConfig, arguments: argparse.Namespace) -> int:
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.training.dry_run import describe

    if arguments.world_size is not None and arguments.nodes is not None:
        raise UserError("--world-size and --nodes both say how many processes there are; give one of them")
    world = arguments.world_size or detect_launch(os.environ).world_size
    if arguments.nodes is not None:
        world = arguments.nodes * arguments.tasks_per_node
    for line in describe(resolved, world, measure=not arguments.no_measure):
        print(line, flush=True)
    return 0
