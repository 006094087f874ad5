"""Nodes that failed a job, remembered per cluster, so that the next submission can leave them out.

    .nodes/<cluster>/<job>-<host>-<kind>.json    {"host": "node7", "kind": "preflight", "job": "12", "nodes": 4, ...}

in the folder that jobs are submitted from, where runs/ lies, too; one writer for each file.

A node counts as bad for thirty days after it failed the check of all nodes before training (while another node of the
same job passed: else it is the setting that is wrong), or lost its ranks in two jobs: by a signal, or with its network.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segformer_spark.errors import DataError, UserError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.json_file import read_json_object
from segformer_spark.run.console import logger

PREFLIGHT, RANKS = "preflight", "ranks"
MEMORY = Path(".nodes")
_DAYS = 30
_LOSSES = 2
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


@dataclass(frozen=True)
class Failure:
    """What a node did in a job of so many `nodes`; `when` in seconds since the epoch."""

    host: str
    kind: str
    job: str
    nodes: int
    what: str
    when: float


def remember(host: str, kind: str, what: str, environment: Mapping[str, str]) -> None:
    """Keep a failure of a node in this job; one that cannot be written is said, and ends nothing."""
    job = environment.get("SLURM_JOB_ID", "")
    if re.fullmatch(r"[0-9]{1,20}", job) is None or _HOST.fullmatch(host) is None:
        return
    nodes = environment.get("SLURM_JOB_NUM_NODES", "1")
    count = int(nodes) if re.fullmatch(r"[0-9]{1,9}", nodes) else 1
    cluster = re.sub(r"[^A-Za-z0-9._-]", "_", environment.get("SLURM_CLUSTER_NAME") or "cluster")
    failure = Failure(host, kind, job, count, what, round(time.time(), 1))
    try:
        write_json(MEMORY / cluster / f"{job}-{host}-{kind}.json", asdict(failure))
    except UserError as error:
        logger.warning("that %s failed is not remembered: %s", host, error)


def read_failures(environment: Mapping[str, str], now: float | None = None) -> dict[Path, Failure]:
    """Those of the last thirty days, of this cluster in a job, elsewhere of all; what is none is left out."""
    cluster = environment.get("SLURM_CLUSTER_NAME")
    folder = re.sub(r"[^A-Za-z0-9._-]", "_", cluster) if cluster else "*"
    oldest = (time.time() if now is None else now) - _DAYS * 86400
    found = {}
    for path in sorted(MEMORY.glob(f"{folder}/*.json")):
        with suppress(DataError, ValueError, TypeError):
            failure = Failure(**read_json_object(path))
            if isinstance(failure.host, str) and _HOST.fullmatch(failure.host) and float(failure.when) >= oldest:
                found[path] = failure
    return found


def bad_nodes(environment: Mapping[str, str], now: float | None = None) -> dict[str, str]:
    """{host: why}, in order of the names."""
    failures = list(read_failures(environment, now).values())
    of_job: dict[str, set[str]] = defaultdict(set)
    losses: dict[str, list[Failure]] = defaultdict(list)
    for one in failures:
        if one.kind == PREFLIGHT:
            of_job[one.job].add(one.host)
        else:
            losses[one.host].append(one)
    found: dict[str, str] = {}
    for one in failures:
        if one.kind == PREFLIGHT and len(of_job[one.job]) < one.nodes:
            found[one.host] = f"failed the check before training of job {one.job} ({one.what})"
    for host, own in losses.items():
        if len(own) >= _LOSSES:
            last = max(own, key=lambda one: (one.when, int(one.job)))
            found.setdefault(host, f"lost its ranks in {len(own)} jobs, last in {last.job} ({last.what})")
    return dict(sorted(found.items()))


def forgive(environment: Mapping[str, str], hosts: set[str] | None) -> int:
    """Forget what is remembered of these hosts, of all with None; returns how many were bad."""
    before = bad_nodes(environment)
    for path, failure in read_failures(environment).items():
        if hosts is None or failure.host in hosts:
            path.unlink(missing_ok=True)
    return len(before) - len(bad_nodes(environment))


def known_to_slurm(hosts: Mapping[str, str]) -> list[str]:
    """Those that sinfo knows, all where it cannot be asked: an unknown name makes sbatch refuse the job."""
    try:
        asked = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return list(hosts)
    known = set(asked.stdout.split())
    return [host for host in hosts if host in known] if asked.returncode == 0 and known else list(hosts)
