"""The record of a run: what ran, on what, from which code. No secrets, user names or machine paths."""

from __future__ import annotations

import copy
import functools
import getpass
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from segformer_spark import __version__
from segformer_spark.config.load import PROJECT_ROOT, ResolvedConfig
from segformer_spark.run.system import now, output_of

_SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_NODE",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
)
_MAX_DIFF_CHARACTERS = 200_000


def configuration_record(resolved: ResolvedConfig) -> dict[str, Any]:
    """The configuration, and where each value came from."""
    return {
        "config": json.loads(resolved.config.model_dump_json()),
        "provenance": {dotted: source for dotted, source in resolved.provenance.items() if source != "default"},
    }


def software_record() -> dict[str, Any]:
    """Versions of this package, Python and every installed package, and the state of the source tree, as this process
    first found them."""
    return copy.deepcopy(_software())


@functools.lru_cache(maxsize=1)
def _software() -> dict[str, Any]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "segformer_spark": __version__,
        "python": platform.python_version(),
        "packages": [f"{name}=={version}" for name, version in sorted(installed.items(), key=lambda p: p[0].lower())],
        "git": git_record(PROJECT_ROOT),
    }


def git_record(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the source tree; None outside a repository."""
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = output_of("git", "-C", str(folder), "diff", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(diff.strip()), "diff": diff[:_MAX_DIFF_CHARACTERS]}


def host_record(device: torch.device) -> dict[str, Any]:
    """The hardware that this rank sees."""
    record: dict[str, Any] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device.type,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        record |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_driver": driver.splitlines()[0].strip() if driver else None,
            "cuda": torch.version.cuda,
        }
    return record


def slurm_record(environment: Mapping[str, str]) -> dict[str, str]:
    """SLURM's variables by allow-list."""
    return {name: environment[name] for name in _SLURM_VARIABLES if name in environment}


def command_record() -> str:
    """The command line of this process."""
    return shlex.join(["segformer-spark", *sys.argv[1:]])


def result_record(device: torch.device, **facts: Any) -> dict[str, Any]:
    """What stands beside results: facts, the time, command, hardware and software; scrubbed."""
    record: dict[str, Any] = scrub(
        {
            **facts,
            "written": now(),
            "command": command_record(),
            "hardware": host_record(device),
            "software": software_record(),
        }
    )
    return record


def scrub(value: Any) -> Any:
    """Replace the project's folder, the home folder and the user's name in every string of a plain structure."""
    replacements = [(str(PROJECT_ROOT), "<project>"), (str(Path.home()), "~")]
    if sys.prefix != sys.base_prefix:
        replacements.insert(0, (sys.prefix, "<environment>"))
    user = _user_name()
    # Only as a part of a path: a data set or a package may have a user's name in it.
    pattern = re.compile(rf"(?<=/){re.escape(user)}(?=/|$|\s)") if user else None
    return _replace(value, [(old, new) for old, new in replacements if len(old) > 1], pattern)


def _replace(value: Any, replacements: list[tuple[str, str]], user: re.Pattern[str] | None) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, replacements, user) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, replacements, user) for item in value]
    if isinstance(value, str):
        for old, new in replacements:
            value = value.replace(old, new)
        return user.sub("<user>", value) if user else value
    return value


def _user_name() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
