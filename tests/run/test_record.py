from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.run import record


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_slurm_variables_by_allow_list() -> None:
    environment = {
        "SLURM_JOB_ID": "1",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_JWT": "secret",
        "AWS_SECRET": "x",
        "HOME": "/h",
    }
    assert record.slurm_record(environment) == {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "2"}


def test_scrub_hides_paths_and_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    monkeypatch.setattr(record, "_user_name", lambda: "jane")
    value = {"a": [f"{PROJECT_ROOT}/x", "/home/jane/data", "/scratch/jane/y"], "n": 3, "none": None}
    assert record.scrub(value) == {"a": ["<project>/x", "~/data", "/scratch/<user>/y"], "n": 3, "none": None}


def test_scrub_leaves_words_alone_that_contain_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/spark"))
    monkeypatch.setattr(record, "_user_name", lambda: "spark")
    value = {"dataset": "spark", "name": "spark_b2", "package": "segformer-spark==1", "root": "/scratch/spark/data"}
    assert record.scrub(value) == {**value, "root": "/scratch/<user>/data"}


def test_host_and_software() -> None:
    host = record.host_record(torch.device("cpu"))
    assert host["cpu_cores"] >= 1
    assert host["memory_gib"] > 0.1
    assert host["device"] == "cpu"
    software = record.software_record()
    assert f"torch=={torch.__version__.split('+')[0]}" in software["packages"]


def test_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert record.git_record(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "x").write_text("1\n")
    git(tmp_path, "add", "x")
    git(tmp_path, "commit", "-m", "x")
    clean = record.git_record(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "x").write_text("2\n")
    dirty = record.git_record(tmp_path)
    assert dirty is not None
    assert dirty["dirty"] is True
    assert "+2" in dirty["diff"]


def test_a_diff_that_is_not_utf8_is_recorded(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "x").write_text("1\n")
    git(tmp_path, "add", "x")
    git(tmp_path, "commit", "-m", "x")
    (tmp_path / "x").write_bytes("é\n".encode("latin-1"))
    changed = record.git_record(tmp_path)
    assert changed is not None
    assert changed["dirty"] is True
