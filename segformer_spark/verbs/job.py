"""`job`: what the batch scripts do before and after training: stage data, requeue."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_actions, add_config, add_from_env, add_verb
from segformer_spark.verbs.launch import job_end, resolve

if TYPE_CHECKING:
    from segformer_spark.run.directory import RunDirectory


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "job", "What the batch scripts do before and after training: stage, requeue.")
    parser = add_verb(
        actions,
        "requeue",
        "Requeue this SLURM job if that can help after training ended with STATUS, and say why or why not.",
        "segformer-spark job requeue --status 85 --config configs/spark_b2.yaml --from-env",
        requeue,
    )
    parser.add_argument("--status", type=int, required=True, help="exit status of the step")
    parser.add_argument(
        "--resumable", action="store_true", help="the step was evaluation or inference, which can run again"
    )
    add_config(parser)
    add_from_env(parser)
    example = "segformer-spark job run-path --config configs/spark_b2.yaml --from-env"
    parser = add_verb(actions, "run-path", "Print the run directory of a configuration.", example, print_run_path)
    add_config(parser)
    add_from_env(parser)
    for name, summary, run in (
        ("stage", "Copy the cache to this node's own disk, once per node; a copy that was begun is finished.", stage),
        ("unstage", "Remove this job's copy from this node.", unstage),
    ):
        example = f"srun --ntasks-per-node=1 python -m segformer_spark job {name} --config X.yaml --from-env"
        parser = add_verb(actions, name, summary, example, run)
        add_config(parser)
        add_from_env(parser)


def stage(arguments: argparse.Namespace) -> int:
    """Copy the configured cache to this node."""
    from segformer_spark.data.cache import find_cache
    from segformer_spark.data.staging import local_scratch, remove_leftovers, stage_cache, staging_folder
    from segformer_spark.run.console import duration, logger, progress_bar, setup_logging

    setup_logging()
    host, job, data = socket.gethostname(), os.environ.get("SLURM_JOB_ID", "local"), resolve(arguments).config.data
    if data.cache is None:
        raise UserError(
            "STAGE_DATA=1 copies a cache and none is set: build one (sbatch slurm/prepare_data.sh), set DATA_CACHE"
        )
    scratch = local_scratch(os.environ)
    for old in remove_leftovers(scratch, job):
        logger.info("[%s] removed %s of a job that is over", host, old)
    cache, started = find_cache(Path(data.cache), data), time.monotonic()
    total, copied = sum(file.stat().st_size for file in cache.iterdir()), 0
    with progress_bar(total, "staging") as advance:

        def count(done: int) -> None:
            nonlocal copied
            copied += done
            advance(done)

        copy = stage_cache(cache, staging_folder(scratch, job), count)
    if copy is not None:
        seconds = time.monotonic() - started
        logger.info(
            "[%s] %s: %.2f GiB, %.2f copied and verified in %s",
            host,
            copy,
            total / 2**30,
            copied / 2**30,
            duration(seconds),
        )
    return 0


def unstage(arguments: argparse.Namespace) -> int:
    """Remove this job's copy."""
    from segformer_spark.data import staging

    staging.unstage(staging.staging_folder(staging.local_scratch(os.environ), os.environ.get("SLURM_JOB_ID", "local")))
    return 0


def print_run_path(arguments: argparse.Namespace) -> int:
    """For scripts that submit what comes after training."""
    print(_run(arguments).path)
    return 0


def requeue(arguments: argparse.Namespace) -> int:
    """Decide, and ask SLURM; status 1 when the job does not run again."""
    from segformer_spark.cluster.requeue import decide, decide_resumable, obstacle

    job, restart = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if job is None:
        raise UserError("job requeue: there is no SLURM_JOB_ID; this is for batch scripts")
    if arguments.resumable:
        decision, again = decide_resumable(arguments.status, restart), "submit it again with the same settings"
    else:
        run = _run(arguments)
        decision = decide(run, arguments.status, job, restart)
        again = "submit it again with the same settings and RESUME=auto in front of sbatch"
        if decision.complete:
            print(f"done: {decision.reason}. Next: MODEL_PATH={run.path} sbatch slurm/segformer_eval.sh")
            return 1
    if not decision.requeue:
        print(f"not requeued: {decision.reason}. When that is mended, {again}")
        return 1
    also_cancelled = os.environ.get("REQUEUE_ON_CANCEL") == "1"
    reason = obstacle(job, restart, job_end(os.environ), also_cancelled=also_cancelled)
    if reason:
        print(f"not requeued from here: {decision.reason}, but {reason}. After scancel, {again}")
        return 1
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"not requeued: scontrol says {(done.stderr or done.stdout).strip()}; {again}")
        return 1
    print(f"requeued job {job}: {decision.reason}")
    return 0


def _run(arguments: argparse.Namespace) -> RunDirectory:
    from segformer_spark.config.load import run_path
    from segformer_spark.run.directory import RunDirectory

    return RunDirectory(run_path(resolve(arguments).config))
