"""Rank and world size from torchrun's or SLURM's environment, or one process alone."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from segformer_spark.distributed.host_list import expand_hosts
from segformer_spark.errors import UserError
from segformer_spark.run.job_variables import GENERATION

_PORTS = range(15000, 32000)  # below the range that Linux hands out by itself
_PORTS_TRIED = 8
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process among all.

    Attributes:
        launcher: "torchrun", "slurm" or "single".
        local_rank, local_world_size: among the processes of this node.
        master: (host, port) of the rendezvous; None for one process alone.
        other_ports: what to try, in this order, where something else listens at the first one.
        token: what only the ranks of this attempt know; who meets others by accident goes on.
        notice: what the user should know about how this process was started.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master: tuple[str, int] | None
    other_ports: tuple[int, ...] = ()
    token: str = ""
    notice: str = ""


def detect_launch(environment: Mapping[str, str]) -> Launch:
    """Read the launcher's variables.

    torchrun wins over SLURM, since it may run inside a SLURM job; `srun` is recognised by SLURM_PROCID within a step
    (an interactive `salloc` shell has SLURM_NTASKS but is one process). MASTER_ADDR and MASTER_PORT are read in a step
    too, for clusters whose node names do not resolve.

    Raises:
        UserError: the variables are incomplete, or contradict each other.
    """
    return _checked(_as_set(environment))


def _as_set(environment: Mapping[str, str]) -> Launch:
    """What the launcher's variables say, whether it can be or not."""
    in_step = "SLURM_STEP_ID" in environment and _integer(environment, "SLURM_NTASKS", "1") > 1
    if "TORCHELASTIC_RUN_ID" in environment or (set(_TORCHRUN) <= environment.keys() and not in_step):
        return Launch(
            launcher="torchrun",
            rank=_integer(environment, "RANK"),
            world_size=_integer(environment, "WORLD_SIZE"),
            local_rank=_integer(environment, "LOCAL_RANK"),
            # Launchers that say no number of processes on a node have at least this one.
            local_world_size=_integer(environment, "LOCAL_WORLD_SIZE", str(_integer(environment, "LOCAL_RANK") + 1)),
            master=(_text(environment, "MASTER_ADDR"), _integer(environment, "MASTER_PORT")),
        )
    if GENERATION in environment:
        ports, token = _ports(environment)
        return Launch(
            launcher="slurm",
            rank=_integer(environment, "RANK"),
            world_size=_integer(environment, "WORLD_SIZE"),
            local_rank=_integer(environment, "LOCAL_RANK"),
            local_world_size=_integer(environment, "LOCAL_WORLD_SIZE"),
            master=(_text(environment, "MASTER_ADDR"), ports[0]),
            other_ports=ports[1:],
            token=token,
        )
    if in_step and "SLURM_PTY_PORT" in environment:
        return Launch(
            *("single", 0, 1, 0, 1, None),
            notice=f"this is an interactive step of {environment['SLURM_NTASKS']} tasks: one process works here. For "
            "one per task type: srun --overlap python -m segformer_spark ...",
        )
    if in_step:
        _refuse_stale(environment)
        ports, token = _ports(environment)
        return Launch(
            launcher="slurm",
            rank=_integer(environment, "SLURM_PROCID"),
            world_size=_integer(environment, "SLURM_NTASKS"),
            local_rank=_integer(environment, "SLURM_LOCALID"),
            local_world_size=_tasks_on_node(environment),
            master=(environment.get("MASTER_ADDR") or first_host(environment), ports[0]),
            other_ports=ports[1:],
            token=token,
        )
    return Launch("single", 0, 1, 0, 1, None)


def first_host(environment: Mapping[str, str]) -> str:
    """The first host of this step: it may be smaller than the job."""
    name = "SLURM_STEP_NODELIST" if environment.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    try:
        return expand_hosts(_text(environment, name))[0]
    except UserError as error:
        raise UserError(f"{name}: {error.problem}", "Set MASTER_ADDR to the first node's name or address.") from error


def _refuse_stale(environment: Mapping[str, str]) -> None:
    """Variables of torchrun that a shell still has from before would make two ranks 0."""
    pairs = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    for own, slurm in pairs.items():
        if own in environment and environment[own] != environment.get(slurm):
            raise UserError(
                f"the launcher's variables contradict each other: {own}={environment[own]}, {slurm}="
                f"{environment.get(slurm)}",
                f"Unset {', '.join(name for name in pairs if name in environment)} before srun, or use torchrun.",
            )


def step_token(environment: Mapping[str, str]) -> str:
    """What tells a job's step, its attempt and its ranks' generation from all others of this machine."""
    parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    generation = [environment[GENERATION]] if GENERATION in environment else []
    return ".".join([*(environment.get(name, "0") for name in parts), *generation])


def _ports(environment: Mapping[str, str]) -> tuple[tuple[int, ...], str]:
    """The ports that all ranks try, and their token; both of job, step and attempt, which may share a node."""
    token = step_token(environment)
    if "MASTER_PORT" in environment:
        return (_integer(environment, "MASTER_PORT"),), token
    return tuple(random.Random(token).sample(_PORTS, _PORTS_TRIED)), token


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise UserError(f"the launcher did not set {name}; start with torchrun, srun or as one process")
    return value


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """SLURM_STEP_TASKS_PER_NODE is `2(x3),1`: two tasks on three nodes, one on the fourth."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE"))
    if text is None:
        return _integer(environment, "SLURM_LOCALID") + 1  # at least
    node, tasks = _integer(environment, "SLURM_NODEID", "0"), 0
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if match is None:
            raise UserError(f"SLURM_TASKS_PER_NODE: {text!r} is not understood")
        tasks, times = int(match[1]), int(match[2] or 1)
        if node < times:
            break
        node -= times
    return tasks


def _integer(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    if text is None:
        raise UserError(f"the launcher did not set {name}; start with torchrun, srun or as one process")
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UserError(f"{name}={text!r} is not a number of 0 or more", _RANGES)
    return int(text)


_RANGES = "Unset it, or start with torchrun, srun or as one process, which set it."


def _checked(launch: Launch) -> Launch:
    """The same, if its numbers can be those of a launcher."""
    port = 1 if launch.master is None else launch.master[1]
    wrong = {
        f"the number of processes is {launch.world_size}": launch.world_size < 1,
        f"rank {launch.rank} is none of {launch.world_size} processes": launch.rank >= launch.world_size,
        f"{launch.local_world_size} processes on this node, {launch.world_size} in all": not (
            1 <= launch.local_world_size <= launch.world_size
        ),
        f"local rank {launch.local_rank} is none of {launch.local_world_size} on this node": (
            launch.local_rank >= launch.local_world_size
        ),
        f"port {port} is none": not 0 < port < 2**16,
    }
    for problem, is_so in wrong.items():
        if is_so:
            raise UserError(f"the launcher's variables ({launch.launcher}): {problem}", _RANGES)
    return launch
