"""Stands in for training, evaluation, inference and the scaling benchmark in jobs: the real command line without torch,
so that a launch takes a moment.

A rank writes down what it sees (PROGRAM_FACTS), and "trains" by sleeping: rank 0 has the lease of the run and commits
checkpoints, and every rank obeys signals as training does. PROGRAM_CRASH=STEP[:RANK] makes a rank fail at a step;
PROGRAM_UNTIL=FILE keeps it training until the file is there.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from segformer_spark.checkpoint.names import MANIFEST, newest_step, step_name
from segformer_spark.config.load import run_path
from segformer_spark.distributed.environment import detect_launch
from segformer_spark.exit_codes import ExitCode
from segformer_spark.files.atomic import write_json
from segformer_spark.run.directory import RunDirectory, open_for_training
from segformer_spark.run.lease import Owner, lease_run, refuse_if_leased
from segformer_spark.run.outcome import Outcome
from segformer_spark.training.stop import catch_signals
from segformer_spark.verbs import bench, evaluate, inference, launch, train

CHECKPOINT_EVERY = 2


def facts(verb: str, **more: object) -> None:
    """One line per rank; a single write, so that ranks do not mix."""
    where = detect_launch(os.environ)
    line = {
        "verb": verb,
        "rank": where.rank,
        "world": where.world_size,
        "local_rank": where.local_rank,
        "host": socket.gethostname(),
        "port": where.master[1] if where.master else None,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "job": os.environ.get("SLURM_JOB_ID"),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "offline": os.environ.get("HF_HUB_OFFLINE"),
        "deadline": launch.job_end(os.environ),
        **more,
    }
    with Path(os.environ["PROGRAM_FACTS"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def fake_train(arguments: argparse.Namespace) -> int:
    """Sleep through `training.max_steps` steps."""
    resolved = launch.resolve(arguments)
    config, where = resolved.config, detect_launch(os.environ)
    cache = train._local_cache(resolved, arguments.from_env)
    crash, _, crash_rank = os.environ.get("PROGRAM_CRASH", "0").partition(":")
    run = RunDirectory(run_path(config))
    resume = train.choose_resume(resolved)
    facts(
        "train",
        variant=config.model.variant,
        image_size=config.data.image_size,
        name=config.experiment.name,
        lr=config.training.optimizer.lr,
        cache=None if cache is None else str(cache),
        resume=resume,
    )
    step = newest_step(run.checkpoints) if (resume or "").startswith("auto") else 0
    total = config.training.max_steps or 10
    until = os.environ.get("PROGRAM_UNTIL")
    with catch_signals() as stop, ExitStack() as stack:
        if where.rank == 0:
            refuse_if_leased(run.path, Owner.here(os.environ))
            open_for_training(run.path, resume=resume is not None, overwrite=False)
            lease = stack.enter_context(lease_run(run.path, step, Owner.here(os.environ)))
            run.create(resolved)
        while step < total or (until is not None and not Path(until).exists()):
            time.sleep(float(os.environ.get("PROGRAM_SECONDS", "0.1")))
            step += 1
            if step == int(crash) and where.rank == int(crash_rank or 0):
                raise RuntimeError(f"crash at step {step}")
            if where.rank == 0:
                lease.check()
                print(f"step {step}/{total}", flush=True)
            if where.rank == 0 and (step % CHECKPOINT_EVERY == 0 or step == total or stop.reason):
                write_json(run.checkpoints / step_name(step) / MANIFEST, {"restart": Owner.here(os.environ).restart})
            if stop.reason:
                if where.rank == 0:
                    lease.outcome = Outcome.STOPPED
                else:
                    time.sleep(1)  # training's ranks leave together
                return ExitCode.STOPPED
        if where.rank == 0:
            lease.outcome = Outcome.COMPLETED
    return 0


def fake_inference(verb: str) -> object:
    """Write down that it ran."""

    def act(arguments: argparse.Namespace) -> int:
        facts(verb, model=os.environ.get("MODEL_PATH"), images=os.environ.get("TEST_IMAGES"))
        return 0

    return act


def fake_scaling(arguments: argparse.Namespace) -> int:
    """Write down that it ran, and where its row would go."""
    facts("scaling", csv=str(arguments.csv))
    return 0


if __name__ == "__main__":
    train.train = fake_train
    bench.scaling = fake_scaling
    evaluate.evaluate = fake_inference("evaluate")  # type: ignore[assignment]
    inference.submit = fake_inference("submit")  # type: ignore[assignment]
    from segformer_spark.cli import main

    main(sys.argv[3:])
