from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from segformer_spark.cluster.bad_nodes import (
    PREFLIGHT,
    RANKS,
    bad_nodes,
    forgive,
    memory_of,
    read_failures,
    remember,
)
from tests.verbs import leave


def job(number: int, nodes: int = 3) -> dict[str, str]:
    return {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CLUSTER_NAME": "iris"}


def test_a_node_that_failed_the_check_alone_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "n" / "iris.jsonl"
    remember(path, "node2", PREFLIGHT, "GPUs", job(7))
    assert bad_nodes(path) == {"node2": "failed the check before training of job 7 (GPUs)"}


def test_where_all_nodes_fail_it_is_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "iris.jsonl"
    for host in ("node1", "node2", "node3"):
        remember(path, host, PREFLIGHT, "data", job(7))
    remember(path, "node4", PREFLIGHT, "data", job(8, nodes=1))
    assert bad_nodes(path) == {}


def test_ranks_lost_twice(tmp_path: Path) -> None:
    path = tmp_path / "iris.jsonl"
    remember(path, "node3", RANKS, "rank 1 was ended by SIGBUS", job(7))
    assert bad_nodes(path) == {}
    remember(path, "node3", RANKS, "node3 is lost", job(9))
    assert bad_nodes(path) == {"node3": "lost its ranks 2 times, last in job 9 (node3 is lost)"}


def test_after_thirty_days_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "iris.jsonl"
    remember(path, "node2", PREFLIGHT, "GPUs", job(7))
    assert bad_nodes(path, time.time() + 29 * 86400)
    assert bad_nodes(path, time.time() + 31 * 86400) == {}


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    """A name goes into a command of Slurm."""
    path = tmp_path / "iris.jsonl"
    remember(path, "node2", PREFLIGHT, "GPUs", job(7))
    good = json.loads(path.read_text())
    bad = [{**good, "host": "node1 --wrap=x"}, {**good, "host": "-w"}, {**good, "more": 1}, [1], {"host": "x"}]
    path.write_text(path.read_text() + "".join(json.dumps(one) + "\n" for one in bad) + '{"host": "no')
    assert [one.host for one in read_failures(path)] == ["node2"]


def test_outside_of_a_job_nothing_is_remembered(tmp_path: Path) -> None:
    remember(tmp_path / "x.jsonl", "login", PREFLIGHT, "GPUs", {})
    assert not (tmp_path / "x.jsonl").exists()


def test_forgiving(tmp_path: Path) -> None:
    path = tmp_path / "iris.jsonl"
    for host in ("node1", "node2"):
        remember(path, host, PREFLIGHT, "GPUs", job(7))
    assert forgive(path, {"node1", "node9"}) == 1
    assert list(bad_nodes(path)) == ["node2"]
    assert forgive(path, None) == 1
    assert bad_nodes(path) == {}


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "iris")
    for host in ("node2", "node10"):
        remember(memory_of(job(7)), host, PREFLIGHT, "GPUs", job(7))
    assert leave("doctor", "--excluded-nodes", "--names") == 0
    assert capsys.readouterr().out == "node10,node2\n", "as sbatch --exclude takes them"
    assert leave("doctor", "--excluded-nodes") == 0
    assert "node2  failed the check before training of job 7 (GPUs)" in capsys.readouterr().out
    assert leave("doctor", "--excluded-nodes", "--forgive", "all") == 0
    assert "2 nodes are not excluded any more" in capsys.readouterr().out
    assert leave("doctor", "--excluded-nodes") == 0
    assert "0 nodes are excluded" in capsys.readouterr().out
