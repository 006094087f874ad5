from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from segformer_spark.cluster.bad_nodes import (
    MEMORY,
    PREFLIGHT,
    RANKS,
    bad_nodes,
    forgive,
    known_to_slurm,
    read_failures,
    remember,
)
from tests.verbs import leave

LOGIN: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)


def job(number: int, nodes: int = 3, cluster: str = "iris") -> dict[str, str]:
    return {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CLUSTER_NAME": cluster}


def test_a_node_that_failed_the_check_alone_is_bad() -> None:
    remember("node2", PREFLIGHT, "GPUs", job(7))
    expected = {"node2": "failed the check before training of job 7 (GPUs)"}
    assert bad_nodes(job(8)) == expected
    assert bad_nodes(LOGIN) == expected, "where Slurm does not say which cluster this is"
    assert bad_nodes(job(8, cluster="meluxina")) == {}


def test_where_all_nodes_fail_it_is_the_setting() -> None:
    for host in ("node1", "node2", "node3"):
        remember(host, PREFLIGHT, "data", job(7))
    remember("node4", PREFLIGHT, "data", job(8, nodes=1))
    assert bad_nodes(LOGIN) == {}


def test_ranks_lost_in_two_jobs() -> None:
    for _ in range(2):
        remember("node3", RANKS, "rank 1 was ended by SIGBUS", job(7))
    assert bad_nodes(LOGIN) == {}, "one job may be wrong itself"
    remember("node3", RANKS, "node3 is lost", job(9))
    assert bad_nodes(LOGIN) == {"node3": "lost its ranks in 2 jobs, last in 9 (node3 is lost)"}


def test_after_thirty_days_it_is_forgotten() -> None:
    remember("node2", PREFLIGHT, "GPUs", job(7))
    assert bad_nodes(LOGIN, time.time() + 29 * 86400)
    assert bad_nodes(LOGIN, time.time() + 31 * 86400) == {}


def test_files_that_are_no_failures_are_left_out() -> None:
    """A name goes into a command of Slurm."""
    remember("node2", PREFLIGHT, "GPUs", job(7))
    (path,) = read_failures(LOGIN)
    good = json.loads(path.read_text())
    bad = [{**good, "host": "node1 --wrap=x"}, {**good, "host": "-w"}, {**good, "more": 1}, [1], {"host": "x"}, None]
    for number, one in enumerate(bad):
        path.with_name(f"{number}.json").write_text(json.dumps(one))
    path.with_name("cut.json").write_text('{"host": "no')
    assert [one.host for one in read_failures(LOGIN).values()] == ["node2"]


@pytest.mark.parametrize(
    ("host", "environment"),
    [("login", {}), ("../up", job(7)), ("node1", {**job(7), "SLURM_JOB_ID": "../7"}), ("a b", job(7))],
)
def test_nothing_else_is_remembered(host: str, environment: dict[str, str]) -> None:
    remember(host, PREFLIGHT, "GPUs", environment)
    assert not MEMORY.exists()


def test_forgiving() -> None:
    for host in ("node1", "node2"):
        remember(host, PREFLIGHT, "GPUs", job(7))
    assert forgive(LOGIN, {"node1", "node9"}) == 1
    assert bad_nodes(LOGIN) == {"node2": "failed the check before training of job 7 (GPUs)"}
    assert forgive(LOGIN, None) == 1
    assert bad_nodes(LOGIN) == {}


def test_names_that_slurm_does_not_know_would_have_sbatch_refuse_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert known_to_slurm({"node1": "", "gone": ""}) == ["node1", "gone"], "nobody to ask"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\necho node1\necho node2\n")
    (tmp_path / "bin" / "sinfo").chmod(0o755)
    assert known_to_slurm({"node1": "", "gone": ""}) == ["node1"]


def test_the_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sinfo
    for host in ("node2", "node10"):
        remember(host, PREFLIGHT, "GPUs", job(7))
    assert leave("doctor", "--excluded-nodes", "--names") == 0
    assert capsys.readouterr().out == "node10,node2\n", "as sbatch --exclude takes them"
    assert leave("doctor", "--excluded-nodes") == 0
    assert "node2  failed the check before training of job 7 (GPUs)" in capsys.readouterr().out
    assert leave("doctor", "--excluded-nodes", "--forgive", "all") == 0
    assert "2 nodes are not excluded any more" in capsys.readouterr().out
    assert leave("doctor", "--excluded-nodes") == 0
    assert "0 nodes are excluded" in capsys.readouterr().out
