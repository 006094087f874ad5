"""`job`: what the batch scripts do before and after training: stage data, requeue."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from pathlib import Path

from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode, RequeueVerdict
from segformer_spark.verbs import train
from segformer_spark.verbs.arguments import (
    Subparsers,
    add_actions,
    add_config,
    add_from_env,
    add_verb,
    not_negative,
    positive,
)
from segformer_spark.verbs.launch import job_end, resolve


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
    parser = add_verb(
        actions,
        "supervise",
        "Start a rank of this job step, and again after a fault, in the same allocation; one for each task of srun.",
        "srun python -m segformer_spark job supervise -- train --config configs/spark_b2.yaml --from-env",
        supervise,
    )
    parser.add_argument("--tasks-per-node", type=positive, default=1, help="of srun (default: %(default)s)")
    parser.add_argument(
        "--spare-nodes", type=not_negative, default=0, help="nodes that wait for a lost one (default: %(default)s)"
    )
    parser.add_argument("rank", nargs=argparse.REMAINDER, metavar="-- train ...", help="what every rank runs")
    example = "segformer-spark job paths --config configs/spark_b2.yaml --from-env"
    parser = add_verb(actions, "paths", "Print run directory and data root, a line each.", example, print_paths)
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
    from segformer_spark.data.staging import own_folder, remove_leftovers, stage_cache, wants_staging
    from segformer_spark.run.console import duration, logger, progress_bar, setup_logging

    setup_logging()
    if not wants_staging(os.environ):
        return 0
    host, data = socket.gethostname(), resolve(arguments).config.data
    if data.cache is None:
        raise UserError(
            "STAGE_DATA=1 copies a cache and none is set: build one (sbatch slurm/prepare_data.sh), set DATA_CACHE"
        )
    folder = own_folder(os.environ)
    for old in remove_leftovers(folder):
        logger.info("[%s] removed %s of a job that is over", host, old)
    cache, started = find_cache(Path(data.cache), data), time.monotonic()
    total, copied = sum(file.stat().st_size for file in cache.iterdir()), 0
    with progress_bar(total, "staging") as advance:

        def count(done: int) -> None:
            nonlocal copied
            copied += done
            advance(done)

        copy = stage_cache(cache, folder, count)
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

    staging.unstage(staging.own_folder(os.environ))
    return 0


def supervise(arguments: argparse.Namespace) -> int:
    """Be the agent of one rank."""
    from segformer_spark.cluster.bad_nodes import RANKS, remember
    from segformer_spark.cluster.requeue import JobId, decide
    from segformer_spark.config.load import run_path
    from segformer_spark.restart.agent import supervise as supervise_rank
    from segformer_spark.restart.coordinator import Layout, Verdict
    from segformer_spark.run.directory import RunDirectory

    job = JobId.here(os.environ)
    words = arguments.rank[1:] if arguments.rank[:1] == ["--"] else arguments.rank
    if job is None or words[:1] != ["train"]:
        raise UserError("job supervise starts the ranks of a training job: srun ... job supervise -- train ...")
    parser = argparse.ArgumentParser()
    train.add(parser.add_subparsers())
    config = resolve(parser.parse_args(words)).config
    layout = Layout(int(os.environ["SLURM_NTASKS"]), arguments.tasks_per_node, arguments.spare_nodes)
    if layout.world_size < 1:
        raise UserError(
            f"SPARE_NODES={arguments.spare_nodes} of {layout.tasks // layout.tasks_per_node} nodes leaves no ranks",
            "Give sbatch more --nodes, or set SPARE_NODES lower.",
            shared=True,
        )

    def decide_in_place(status: int, generation: int) -> Verdict:
        decision = decide(RunDirectory(run_path(config)), status, job, generation)
        if decision.verdict == RequeueVerdict.COMPLETE:
            return Verdict(False, decision.reason)
        return Verdict(decision.requeue, decision.reason, status or ExitCode.PEER_LOST)

    def failed(host: str, what: str) -> None:
        remember(host, RANKS, what, os.environ)

    hardware = config.hardware
    return supervise_rank(words, os.environ, layout, hardware.peer_timeout, hardware.device, decide_in_place, failed)


def print_paths(arguments: argparse.Namespace) -> int:
    """For scripts that submit what comes after training."""
    from segformer_spark.config.load import run_path

    config = resolve(arguments).config
    print(run_path(config))
    print(config.data.root)
    return 0


def requeue(arguments: argparse.Namespace) -> int:
    """Decide, and ask SLURM; the status says what was decided."""
    from segformer_spark.cluster.bad_nodes import bad_nodes, known_to_slurm
    from segformer_spark.cluster.requeue import JobId, ask_slurm, decide, decide_resumable, obstacle
    from segformer_spark.config.load import run_path
    from segformer_spark.run.directory import RunDirectory

    job = JobId.here(os.environ)
    if job is None:
        raise UserError("job requeue: there is no SLURM_JOB_ID; this is for batch scripts")
    also_cancelled = os.environ.get("REQUEUE_ON_CANCEL") == "1"
    reason = obstacle(job, job_end(os.environ), also_cancelled=also_cancelled)
    if arguments.resumable:
        decision, again = decide_resumable(arguments.status, job), "submit it again with the same settings"
    else:
        run = RunDirectory(run_path(resolve(arguments).config))
        again = "submit it again with the same settings and RESUME=auto in front of sbatch"
        decision = decide(run, arguments.status, job)
        if decision.verdict == RequeueVerdict.COMPLETE:
            print(f"done: {decision.reason}. Next: MODEL_PATH={run.path} sbatch slurm/segformer_eval.sh")
    if decision.verdict == RequeueVerdict.GIVEN_UP and not reason:
        print(f"not requeued: {decision.reason}. When that is fixed, {again}")
    if not decision.requeue:
        return decision.verdict
    if reason:
        print(f"not requeued from here: {decision.reason}, but {reason}. If you cancelled it, {again}")
        return RequeueVerdict.NOT_OURS
    # Said before it is done: SLURM ends this script as soon as it is asked.
    print(f"requeueing job {job.name}: {decision.reason}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    excluded = known_to_slurm(bad_nodes(os.environ))
    if excluded:
        print(f"it leaves out {', '.join(excluded)}: segformer-spark doctor --excluded-nodes says why", flush=True)
    trouble = ask_slurm(job, excluded)
    if trouble:
        print(f"not requeued: scontrol says {trouble}; {again}")
        return RequeueVerdict.GIVEN_UP
    return RequeueVerdict.REQUEUED
