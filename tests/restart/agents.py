"""Agents of a job step as processes of this machine, each on a node of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segformer_spark.cli import main
from tests.ranks import forked

RANK_SETTINGS = ("output.checkpoint_every_steps=2", "hardware.peer_timeout=8")


def start_agents(
    folder: Path, tasks: int, overrides: Sequence[str], *, spares: int = 0, restart: int = 0, job: int | None = None
) -> list[Any]:
    """Start them; what they and their ranks print is appended to folder/log."""
    number = os.getpid() if job is None else job
    return [forked(_agent, number, restart, task, tasks, spares, str(folder), overrides) for task in range(tasks)]


def _agent(job: int, restart: int, task: int, tasks: int, spares: int, folder: str, overrides: Sequence[str]) -> None:
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ |= {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": str(restart)}
    os.environ |= {"SLURM_NTASKS": str(tasks), "SLURM_PROCID": str(task), "SLURM_LOCALID": "0"}
    os.environ |= {"SLURM_NODEID": str(task), "SLURMD_NODENAME": f"n{task}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "JOB_AGENT_KEY": folder}
    settings = [word for override in overrides for word in ("--set", override)]
    main(["job", "supervise", "--spare-nodes", str(spares), "--", "train", "--from-env", *settings])
