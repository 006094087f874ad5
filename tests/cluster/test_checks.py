from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from segformer_spark.cluster import node_checks
from segformer_spark.cluster.checks import FAILED, OK, WARNING, Check, failures, summary, table
from segformer_spark.cluster.job_checks import job_checks, merge
from segformer_spark.cluster.node_checks import (
    check_clock,
    check_data,
    check_gpus,
    check_loader_limits,
    check_master,
    check_quota,
    check_speed,
    check_time,
    check_versions,
    check_weights,
    check_writable,
    clock_check,
    fingerprint,
    parse_quota,
    quick_checks,
)
from segformer_spark.config.load import load_config
from tests.ranks import Group, run_on_ranks


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH for stand-ins."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def tool(folder: Path, name: str, output: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(0o755)


def test_table_is_aligned_and_says_how_to_mend() -> None:
    checks = [Check("a", OK, "fine"), Check("longer", FAILED, "word " * 30, "do this")]
    lines = table(checks)
    assert lines[0] == "OK       a       fine"
    assert lines[1].startswith("failed   longer  word")
    assert lines[2].startswith(" " * 17 + "word")
    assert lines[-1] == " " * 17 + "-> do this"
    assert summary(checks) == "1 OK, 0 warning(s), 1 failed"
    assert failures(checks) == [checks[1]]


def test_versions() -> None:
    assert check_versions(None).state == OK
    assert check_versions(fingerprint()).state == OK
    assert check_versions("0" * 16).state == FAILED


GPU = "NVIDIA A100-SXM4-40GB, 535.104, 3, 0"


@pytest.mark.parametrize(
    ("output", "granted", "state", "text"),
    [
        (f"{GPU}\n{GPU}", "2", OK, "2 x NVIDIA A100-SXM4-40GB, driver 535.104"),
        (GPU, "2", FAILED, "SLURM granted 2"),
        (f"{GPU}\nNVIDIA A100-SXM4-40GB, 535.104, 3, 7", "2", FAILED, "memory errors on GPU 1"),
        ("NVIDIA A100-SXM4-40GB, 535.104, 30000, [N/A]", "1", WARNING, "in use already: GPU 0 (30000 MiB)"),
    ],
)
def test_gpus(tools: Path, output: str, granted: str, state: str, text: str) -> None:
    tool(tools, "nvidia-smi", output)
    check = check_gpus("auto", {"SLURM_GPUS_ON_NODE": granted})
    assert check.state == state
    assert text in check.found
    assert bool(check.fix) == (state != OK)


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "output_of", lambda *command, timeout: None)
    assert check_gpus("cpu", {"SLURM_GPUS_ON_NODE": "4"}).state == OK
    assert check_gpus("auto", {}).state == WARNING
    assert check_gpus("cuda", {}).state == FAILED
    assert check_gpus("auto", {"SLURM_GPUS_ON_NODE": "4"}).state == FAILED


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_writable("output", tmp_path / "not" / "yet", "x").state == OK
    assert check_speed("output", tmp_path / "not" / "yet", size=2**20).state == OK
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert check_writable("output", Path("/proc/nothing"), "fix it").state == FAILED
    assert check_speed("output", Path("/proc/nothing"), size=2**20).state == FAILED
    for free, state in ((2**29, FAILED), (5 * 2**30, WARNING), (50 * 2**30, OK)):
        monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert check_writable("output", tmp_path, "x").state == state


def test_data_and_weights(tmp_path: Path) -> None:
    def config(**values: object) -> object:
        return load_config(overrides=[f"{key.replace('__', '.')}={value}" for key, value in values.items()]).config

    good = config(data__root=tmp_path, model__pretrained="none")
    assert check_data(good).state == OK  # type: ignore[arg-type]
    assert check_weights(good).state == OK  # type: ignore[arg-type]
    lost = check_data(config(data__root=tmp_path / "none"))  # type: ignore[arg-type]
    assert (lost.state, lost.fix) == (
        FAILED,
        "set data.root (with --from-env: DATA_ROOT) to the folder of the data set",
    )
    assert check_data(config(data__root=tmp_path, data__cache=tmp_path / "none")).state == FAILED  # type: ignore[arg-type]
    weights = check_weights(config(model__weights_dir=tmp_path))  # type: ignore[arg-type]
    assert weights.state == FAILED
    assert "segformer-spark weights fetch --variant b2" in weights.fix
    checks = quick_checks(good, {}, fingerprint())  # type: ignore[arg-type]
    assert [check.name for check in checks] == [
        "versions",
        "GPUs",
        "output",
        "scratch",
        "data",
        "weights",
        "clock",
        "loader",
        "meeting point",
    ]


def test_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_clock(tmp_path).state == OK
    real = time.time
    monkeypatch.setattr(node_checks.time, "time", lambda: real() + 60)
    assert check_clock(tmp_path).state == WARNING
    assert clock_check("clock", 4.0, "x").state == OK
    assert clock_check("clock", 301.0, "x").state == FAILED


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("     /scratch 9437184  10485760 12582912       -   12000  1000000 1100000       -", (9437184, 12582912)),
        ("server:/home  41234  5000000 5242880           1000     0     0", (41234, 5242880)),
        ("server:/home  6000000*  5000000 0  6days         1000     0     0", (6000000, 5000000)),
        ("/scratch 100 0 0 - 10 0 0 -", None),
        ("     Filesystem  blocks   quota   limit   grace   files", None),
        ("", None),
    ],
)
def test_quota_lines(line: str, expected: tuple[int, int] | None) -> None:
    assert parse_quota(line) == expected


def test_quota(tools: Path, tmp_path: Path) -> None:
    tool(tools, "lfs", f"{tmp_path} 95000 100000 100000 - 5 0 0 -")
    assert check_quota(tmp_path).state == WARNING
    tool(tools, "lfs", f"{tmp_path} 100000 100000 100000 - 5 0 0 -")
    assert check_quota(tmp_path).state == FAILED
    tool(tools, "lfs", f"{tmp_path} 1000 100000 100000 - 5 0 0 -")
    assert check_quota(tmp_path).state == OK


def test_time_limit() -> None:
    assert check_time({}).found == "not in a job"
    assert check_time({"SLURM_JOB_END_TIME": "1000"}, now=500).state == WARNING
    assert check_time({"SLURM_JOB_END_TIME": "100000"}, now=500).state == OK


def test_hosts_that_differ_are_named() -> None:
    fine, bad = Check("data", OK, "x"), Check("data", FAILED, "gone", "fix")
    assert merge([("a", fine), ("b", fine)]) == [Check("data", OK, "x (and 1 more node(s) alike)")]
    assert merge([("a", fine), ("b", bad), ("b", bad)]) == [Check("data", FAILED, "b: gone", "fix")]


def checks_of_a_job(group: Group, root: str, runs: str) -> list[tuple[str, str, str]]:
    overrides = [f"data.root={root}", f"output.save_path={runs}/x", "model.pretrained=none", "hardware.device=cpu"]
    found = job_checks(load_config(overrides=overrides).config, group, {"SCRATCH_DIR": runs})
    return [(check.name, check.state, check.found) for check in found]


def test_a_job_of_two_ranks(spark_root: Path, tmp_path: Path) -> None:
    first, second = run_on_ranks(2, checks_of_a_job, str(spark_root), str(tmp_path))
    assert [one[:2] for one in first] == [one[:2] for one in second]
    assert {state for _, state, _ in first} == {OK}
    found = {name: text for name, _, text in first}
    assert found["ranks"].startswith("2 on 1 node(s)")
    assert "gloo, 64 MiB in" in found["all-reduce"]
    broken = run_on_ranks(2, checks_of_a_job, str(spark_root / "none"), str(tmp_path))[0]
    assert [name for name, state, _ in broken if state == FAILED] == ["data"]


def test_what_loader_processes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(overrides=["data.num_workers=8", "training.batch_size=64", "data.image_size=1024"]).config
    needed = 2 * 8 * 64 * 4 * 1024**2
    monkeypatch.setattr(node_checks, "shared_memory_free", lambda: needed)
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    assert check_loader_limits(config).state == OK
    assert (
        "8 processes per rank: 4096 MiB free in /dev/shm, 4096 needed; up to 4096" in check_loader_limits(config).found
    )
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/" + "x" * 101)
    assert check_loader_limits(config).state == WARNING
    monkeypatch.setattr("resource.getrlimit", lambda which: (40, 40))
    assert "ulimit -n" in check_loader_limits(config).fix
    monkeypatch.setattr(node_checks, "shared_memory_free", lambda: needed - 1)
    assert "NUM_WORKERS" in check_loader_limits(config).fix
    assert check_loader_limits(load_config(overrides=["data.num_workers=0"]).config).state == OK


def test_where_the_ranks_meet() -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    assert check_master({}).found == "none: one process alone"
    here = check_master({**step, "SLURM_JOB_NODELIST": "localhost"})
    assert (here.state, here.found[:40]) == (OK, "localhost, from the list of nodes, port ")
    given = check_master({**step, "SLURM_JOB_NODELIST": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456"})
    assert given.found == "127.0.0.1, from MASTER_ADDR, port 23456 given by MASTER_PORT"
    unknown = check_master({**step, "SLURM_JOB_NODELIST": "gpu[3-4].invalid"})
    assert (unknown.state, "MASTER_ADDR" in unknown.fix) == (FAILED, True)
    assert check_master({**step, "SLURM_JOB_NODELIST": "n["}).state == FAILED
