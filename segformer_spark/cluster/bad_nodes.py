"""Nodes that failed a job, remembered per cluster, so that the next submission can leave them out.

    .nodes/<cluster>.jsonl    {"host": "node7", "kind": "preflight", "job": "12", "nodes": 4, "what": "GPUs", ...}

in the folder that jobs are submitted from, where runs/ lies, too.

A node counts as bad for thirty days after it failed the check of all nodes before training (while another node of the
same job passed: else it is the setting that is wrong), or after two losses of ranks that no program explains.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from segformer_spark.run.atomic import write_text
from segformer_spark.run.console import logger

PREFLIGHT, RANKS = "preflight", "ranks"
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


def memory_of(environment: Mapping[str, str]) -> Path:
    """The file of this cluster."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", environment.get("SLURM_CLUSTER_NAME") or "cluster")
    return Path(".nodes") / f"{name}.jsonl"


def remember(path: Path, host: str, kind: str, what: str, environment: Mapping[str, str]) -> None:
    """Add a failure of a job; one that cannot be written is said, and ends nothing."""
    if "SLURM_JOB_ID" not in environment:
        return
    nodes = environment.get("SLURM_JOB_NUM_NODES", "1")
    failure = Failure(
        host, kind, environment.get("SLURM_JOB_ID", ""), int(nodes) if nodes.isascii() and nodes.isdigit() else 1, what,
        round(time.time(), 1),
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(asdict(failure)) + "\n").encode())  # whole lines, also of several nodes
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("%s: that %s failed is not remembered: %s", path, host, error.strerror)


def read_failures(path: Path, now: float | None = None) -> list[Failure]:
    """Those of the last thirty days; lines that are none are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    oldest = (time.time() if now is None else now) - _DAYS * 86400
    found = []
    for line in lines:
        with suppress(ValueError, TypeError):
            failure = Failure(**json.loads(line))
            if isinstance(failure.host, str) and _HOST.fullmatch(failure.host) and float(failure.when) >= oldest:
                found.append(failure)
    return found


def bad_nodes(path: Path, now: float | None = None) -> dict[str, str]:
    """{host: why}, in order of the names."""
    failures = read_failures(path, now)
    of_job: dict[str, set[str]] = defaultdict(set)
    for one in failures:
        if one.kind == PREFLIGHT:
            of_job[one.job].add(one.host)
    found: dict[str, str] = {}
    for one in failures:
        if one.kind == PREFLIGHT and len(of_job[one.job]) < one.nodes:
            found[one.host] = f"failed the check before training of job {one.job} ({one.what})"
    losses = Counter(one.host for one in failures if one.kind == RANKS)
    for host, count in losses.items():
        if count >= _LOSSES:
            last = [one for one in failures if one.host == host and one.kind == RANKS][-1]
            found.setdefault(host, f"lost its ranks {count} times, last in job {last.job} ({last.what})")
    return dict(sorted(found.items()))


def forgive(path: Path, hosts: set[str] | None) -> int:
    """Forget what is remembered of these hosts, of all with None; returns how many were bad."""
    before = bad_nodes(path)
    kept = [] if hosts is None else [one for one in read_failures(path) if one.host not in hosts]
    write_text(path, "".join(json.dumps(asdict(one)) + "\n" for one in kept))
    return len(before) - len(bad_nodes(path))
