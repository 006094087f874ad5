"""Rank and world size from torchrun's or SLURM's environment, or one process alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segformer_spark.errors import UserError

_BASE_PORT, _NUM_PORTS = 15000, 17000  # below the range that Linux hands out by itself


@dataclass(frozen=True)
class Launch:
    """This process among all.

    Attributes:
        launcher: "torchrun", "slurm" or "single".
        local_rank, local_world_size: among the processes of this node.
        master: (host, port) of the rendezvous; None for one process alone.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master: tuple[str, int] | None


def detect_launch(environment: Mapping[str, str]) -> Launch:
    """Read the launcher's variables.

    torchrun wins over SLURM, since it may run inside a SLURM job; `srun` is recognised by SLURM_PROCID within a step
    (an interactive `salloc` shell has SLURM_NTASKS but is one process).

    Raises:
        UserError: the variables are incomplete.
    """
    if (
        "TORCHELASTIC_RUN_ID" in environment
        or {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    ):
        return Launch(
            launcher="torchrun",
            rank=_integer(environment, "RANK"),
            world_size=_integer(environment, "WORLD_SIZE"),
            local_rank=_integer(environment, "LOCAL_RANK"),
            local_world_size=_integer(environment, "LOCAL_WORLD_SIZE", "1"),
            master=(environment["MASTER_ADDR"], _integer(environment, "MASTER_PORT")),
        )
    if "SLURM_STEP_ID" in environment and _integer(environment, "SLURM_NTASKS", "1") > 1:
        return Launch(
            launcher="slurm",
            rank=_integer(environment, "SLURM_PROCID"),
            world_size=_integer(environment, "SLURM_NTASKS"),
            local_rank=_integer(environment, "SLURM_LOCALID"),
            local_world_size=_tasks_on_node(environment),
            # The step's own nodes: it may be smaller than the job.
            master=(
                first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]),
                _port(environment),
            ),
        )
    return Launch("single", 0, 1, 0, 1, None)


def first_host(node_list: str) -> str:
    """The first host of a SLURM node list such as `gpu[003-005,9],login1`, without calling scontrol.

    Raises:
        UserError: not a node list.
    """
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[(\d+)[^\]]*\])?([A-Za-z0-9._-]*)", node_list)
    if match is None:
        raise UserError(f"SLURM_JOB_NODELIST: {node_list!r} is not a list of nodes")
    prefix, number, suffix = match.groups()
    return f"{prefix}{number or ''}{suffix}"


def _port(environment: Mapping[str, str]) -> int:
    """A port from the job id: two jobs on one node must not meet on a fixed one."""
    if "MASTER_PORT" in environment:
        return _integer(environment, "MASTER_PORT")
    return _BASE_PORT + _integer(environment, "SLURM_JOB_ID") % _NUM_PORTS


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """SLURM_STEP_TASKS_PER_NODE is `2(x3),1`: two tasks on three nodes, one on the fourth."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1"))
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE: {text!r} is not understood")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer(environment, "SLURM_NODEID", "0")
    return counts[min(node, len(counts) - 1)]


def _integer(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    if text is None:
        raise UserError(f"the launcher did not set {name}; start with torchrun, srun or as one process")
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name}={text!r} is not a number") from error
