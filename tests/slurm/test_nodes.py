"""Nodes that fail, lie or are full: preflight, staging, fencing; with the stand-in for training."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from segformer_spark.checkpoint.names import newest_step
from segformer_spark.distributed.host_list import expand_hosts
from tests.slurm.conftest import Project
from tests.slurm.packed import pack
from tests.waiting import wait_for

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
ONE = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


def test_preflight_names_the_bad_node(quick_project: Project) -> None:
    """The data lie on node1's own disk only."""
    cluster = quick_project.cluster
    cluster.on("node1", "mkdir", str(cluster.base / "scratch" / "data"))
    job = quick_project.submit(
        "segformer_train.sh", *TWO_BY_TWO, "--nodelist=node[1-2]", DATA_ROOT=str(cluster.base / "scratch" / "data")
    )
    assert cluster.wait(job, "FAILED", "COMPLETED")["JobState"] == "FAILED"
    cluster.on("node1", "rmdir", str(cluster.base / "scratch" / "data"))
    log = quick_project.log(job)
    assert log.count("[node2] failed   data") == 1
    assert "[node1]" not in log
    assert "-> set data.root (with --from-env: DATA_ROOT) to the folder of the data set" in log
    assert log.splitlines()[-1].startswith("not started: a node is not fit")
    assert quick_project.facts() == []


def test_preflight_finds_gpus_that_were_granted_and_are_not_there(quick_project: Project) -> None:
    job = quick_project.submit(
        "segformer_train.sh", "--nodes=1", "--gpus-per-node=2", "--cpus-per-task=1", DEVICE="auto"
    )
    quick_project.cluster.wait(job, "FAILED")
    assert "[node1] failed   GPUs  SLURM granted 2 and nvidia-smi finds none" in quick_project.log(job)


def test_another_environment_on_a_node_is_found(quick_project: Project) -> None:
    binary = Path(quick_project.environment["VENV"]) / "bin" / "python"
    other = 'if [ "$(hostname)" = node2 ]; then export PYTHONPATH=' + str(binary.parent / "more") + "; fi"
    package = binary.parent / "more" / "extra-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    binary.write_text(binary.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{other}\n"))
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, "--nodelist=node[1-2]")
    quick_project.cluster.wait(job, "FAILED")
    assert "[node2] failed   versions" in quick_project.log(job)
    assert "let VENV name one environment on storage that all nodes share" in quick_project.log(job)


@pytest.fixture
def cache(quick_project: Project, tmp_path: Path) -> Path:
    """A cache of the training split, built by the batch script."""
    job = quick_project.submit("prepare_data.sh", "--cpus-per-task=1", CACHE_DIR=str(tmp_path / "cache"))
    quick_project.cluster.wait(job, "COMPLETED", "FAILED")
    assert "done: prepare data. Next: train from the cache: DATA_CACHE=" in quick_project.log(job)
    return tmp_path / "cache"


@pytest.mark.long
def test_staged_once_per_node_kept_over_a_requeue_and_removed(quick_project: Project, cache: Path) -> None:
    cluster = quick_project.cluster
    scratch = cluster.base / "scratch"
    stale = scratch / "segformer_spark-4000000000"
    cluster.on("node1", "mkdir", str(stale))
    settings = {"STAGE_DATA": "1", "DATA_CACHE": str(cache), "LOCAL_SCRATCH": str(scratch)}
    settings |= {"MAX_STEPS": "4", "PROGRAM_UNTIL": "may-end"}
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, "--nodelist=node[1-2]", **settings)
    wait_for(lambda: len(quick_project.facts(verb="train")) == 4, "all ranks, which can take a signal then")
    quick_project.until(job, "step 3/")
    cluster.login("scancel", "--signal=USR1", str(job))
    quick_project.until(job, "attempt 2,")
    (quick_project.root / "may-end").touch()
    cluster.wait(job, "COMPLETED", "FAILED", restarts=1)
    log = quick_project.log(job)
    facts = quick_project.facts(verb="train")
    assert len(facts) == 8
    expected = str(scratch / f"segformer_spark-{job}" / next(cache.iterdir()).name)
    assert {fact["cache"] for fact in facts} == {expected}
    for node in ("node1", "node2"):
        assert log.count(f"[{node}] {expected}: ") == 2, "one copy per node and attempt, not per rank"
        assert log.count(f"[{node}] {expected}: 0.00 GiB, 0.00 copied") == 2
        assert cluster.on(node, "ls", str(scratch)) == "", "removed at the end"
    assert log.count(f"{expected} is complete already") == 2, "found again after the requeue"
    assert f"[node1] removed {stale} of a job that is over" in log


def test_a_cache_that_does_not_fit_is_read_from_shared_storage(quick_project: Project, cache: Path) -> None:
    cluster = quick_project.cluster
    scratch = cluster.base / "scratch"
    cluster.on("node2", "sh", "-c", f"head -c 900m /dev/zero > {scratch}/full")
    settings = {"STAGE_DATA": "1", "DATA_CACHE": str(cache), "LOCAL_SCRATCH": str(scratch), "MAX_STEPS": "2"}
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, "--nodelist=node[1-2]", **settings)
    try:
        assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    finally:
        cluster.on("node2", "rm", f"{scratch}/full")
    assert {(f["host"], f["cache"] is None) for f in quick_project.facts()} == {("node1", False), ("node2", True)}
    assert "does not fit on" in quick_project.log(job)
    assert "this node reads it from shared storage" in quick_project.log(job)


def test_the_environment_is_unpacked_to_every_node(quick_project: Project) -> None:
    """With no other environment than the archive: what runs was unpacked."""
    cluster, environment = quick_project.cluster, Path(quick_project.environment["VENV"])
    pack(environment)
    shutil.rmtree(environment)
    scratch = cluster.base / "scratch"
    settings = {"STAGE_ENV": "1", "LOCAL_SCRATCH": str(scratch), "MAX_STEPS": "2"}
    job = quick_project.submit("segformer_train.sh", *TWO_BY_TWO, "--nodelist=node[1-2]", **settings)
    assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    log = quick_project.log(job)
    for node in ("node1", "node2"):
        assert log.count(f"[{node}] {scratch}/segformer_spark-env-{job}: ") == 1
        assert cluster.on(node, "ls", str(scratch)) == "", "removed at the end"
    assert len(quick_project.facts(verb="train")) == 4


def test_staging_without_a_cache_is_a_mistake(quick_project: Project) -> None:
    job = quick_project.submit("segformer_train.sh", *ONE, STAGE_DATA="1")
    quick_project.cluster.wait(job, "FAILED")
    assert "STAGE_DATA=1 copies a cache and none is set" in quick_project.log(job)
    assert quick_project.facts() == []


def test_a_killed_node_is_replaced(quick_project: Project) -> None:
    """Three ranks on three nodes; one node dies in mid-run, the spare takes its place."""
    cluster = quick_project.cluster
    options = ("--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
    job = quick_project.submit("segformer_train.sh", *options, MAX_STEPS="4", PROGRAM_UNTIL="may-end")
    quick_project.until(job, "step 3/")
    lost = quick_project.facts(rank=2)[0]["host"]
    saved = newest_step(quick_project.run("r") / "checkpoints")
    cluster.kill_node(lost)
    # As SLURM finds out after SlurmdTimeout; the test of the network cut leaves that to it.
    cluster.login("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")
    wait_for(lambda: len(quick_project.facts(restart=1)) == 3, "the second attempt")
    (quick_project.root / "may-end").touch()
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1"
    second = quick_project.facts(restart=1)
    assert {fact["host"] for fact in second} == set(cluster.names) - {lost}
    assert {fact["resume"] for fact in second} == {"auto"}
    resumed = json.loads((quick_project.run("r") / "attempts" / "0002.json").read_text())
    assert resumed["from_step"] >= saved >= 2
    assert "done: training is complete" in quick_project.log(job).splitlines()[-1]


def test_a_stray_rank_cannot_write_into_the_run(quick_project: Project) -> None:
    """Slurmd dies alone: SLURM takes the node for lost and starts the job elsewhere, the rank there lives on."""
    cluster = quick_project.cluster
    settings = {"MAX_STEPS": "4", "PROGRAM_UNTIL": "may-end"}
    job = quick_project.submit("segformer_train.sh", *ONE, **settings)
    quick_project.until(job, "step 3/")
    stray = quick_project.facts()[0]
    cluster.kill_daemon(stray["host"])
    cluster.login("scontrol", "update", f"nodename={stray['host']}", "state=down", "reason=test")
    wait_for(lambda: quick_project.facts(restart=1), "the second attempt")
    second = quick_project.facts(restart=1)[0]
    assert second["host"] != stray["host"]
    attempts = sorted((quick_project.run("r") / "attempts").glob("*.json"))
    pid = json.loads(attempts[0].read_text())["pid"]
    wait_for(lambda: not _lives(quick_project, stray["host"], pid), "the stray rank to notice and end")
    first = json.loads(attempts[0].read_text())
    assert first["ended"]
    assert first["outcome"] is None, "it did not finish, it was fenced off"
    (quick_project.root / "may-end").touch()
    assert cluster.wait(job, "COMPLETED")["Restarts"] == "1"
    taken_over = (quick_project.run("r") / "attempts" / "latest").stat().st_mtime
    for manifest in quick_project.run("r").glob("checkpoints/*/manifest.json"):
        by_stray = json.loads(manifest.read_text())["restart"] == 0
        assert (manifest.stat().st_mtime < taken_over) == by_stray
    assert quick_project.log(job).count("done: training is complete") == 1, "srun's status 0 is not believed"


def _lives(project: Project, node: str, pid: int) -> bool:
    return bool(project.cluster.on(node, "sh", "-c", f"kill -0 {pid} 2>/dev/null && echo yes", check=False))


def test_a_requeued_job_leaves_out_nodes_that_lost_their_ranks(quick_project: Project) -> None:
    cluster = quick_project.cluster
    own = ("--exclude=node4",)
    job = quick_project.submit("segformer_train.sh", *ONE, *own, MAX_STEPS="4", PROGRAM_UNTIL="may-end")
    quick_project.until(job, "step 3/")
    host = quick_project.facts()[0]["host"]
    memory = quick_project.root / ".nodes" / "test"
    memory.mkdir(parents=True)
    for number in ("1", "2"):
        lost = {"host": host, "kind": "ranks", "job": number, "nodes": 1, "what": "killed", "when": time.time()}
        (memory / f"{number}-{host}-ranks.json").write_text(json.dumps(lost))
    cluster.login("scancel", "--signal=USR1", str(job))
    wait_for(lambda: quick_project.facts(restart=1), "the second attempt")
    (quick_project.root / "may-end").touch()
    left_out = cluster.wait(job, "COMPLETED", "FAILED")["ExcNodeList"]
    assert set(expand_hosts(left_out)) == {host, "node4"}, "and what the user left out"
    assert f"it leaves out {host}" in quick_project.log(job)
    assert quick_project.facts(restart=1)[0]["host"] != host
