from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.data import staging
from segformer_spark.data.staging import (
    local_scratch,
    remove_leftovers,
    stage_cache,
    staged_copy,
    staging_folder,
    unstage,
    wants_staging,
)
from segformer_spark.errors import DataError, UserError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "shared" / "spark-train"
    folder.mkdir(parents=True)
    for name, content in {"shard-00000.bin": b"a" * 5000, "shard-00001.bin": b"b" * 100, "cache.json": b"{}"}.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_copied_found_and_removed(cache: Path, tmp_path: Path) -> None:
    folder = staging_folder(tmp_path / "local", "7")
    copied: list[int] = []
    assert staged_copy(cache, folder) is None
    copy = stage_cache(cache, folder, copied.append)
    assert copy is not None
    assert contents(copy) == contents(cache)
    assert sum(copied) == 5102
    assert staged_copy(cache, folder) == copy
    assert stage_cache(cache, folder, copied.append) == copy
    assert sum(copied) == 5102, "nothing is copied twice"
    unstage(folder)
    assert not folder.exists()


def test_a_copy_that_was_cut_off_is_finished(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = staging_folder(tmp_path / "local", "7")
    original = staging._copy_verified

    def killed(source: Path, target: Path, progress: Any) -> None:
        if source.name == "shard-00001.bin":
            target.with_name(f".{target.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        original(source, target, progress)

    monkeypatch.setattr(staging, "_copy_verified", killed)
    with pytest.raises(KeyboardInterrupt):
        stage_cache(cache, folder)
    assert staged_copy(cache, folder) is None
    monkeypatch.setattr(staging, "_copy_verified", original)
    copied: list[int] = []
    copy = stage_cache(cache, folder, copied.append)
    assert copy is not None
    assert sum(copied) == 102, "the first shard stands"
    assert contents(copy) == contents(cache)


def test_a_disk_that_lies_is_found(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "sha256_of", lambda path: "0")
    folder = staging_folder(tmp_path / "local", "7")
    with pytest.raises(DataError, match="the node's disk is not to be trusted"):
        stage_cache(cache, folder)
    assert staged_copy(cache, folder) is None


def test_too_little_room_falls_back(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=2**28 + 5000))
    monkeypatch.setattr(staging.logger, "propagate", True)
    assert stage_cache(cache, staging_folder(tmp_path / "local", "7")) is None
    assert "does not fit on" in caplog.text
    assert list((tmp_path / "local").iterdir()) == []
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=2**28 + 5102))
    assert stage_cache(cache, staging_folder(tmp_path / "local", "7")) is not None


def test_an_unwritable_disk_falls_back(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.logger, "propagate", True)
    assert stage_cache(cache, Path("/proc/nothing/7")) is None
    assert "this node reads the data from shared storage" in caplog.text


def test_leftovers_of_jobs_that_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what squeue says; when it says nothing, they stay."""
    for job in ("5", "6", "7", "8", "x"):
        staging_folder(tmp_path, job).mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    squeue = tools / "squeue"
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    assert remove_leftovers(staging_folder(tmp_path, "7")) == []
    squeue.write_text(
        '#!/bin/sh\ncase "$3" in 5) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;\n'
        "6) echo CANCELLED ;; *) echo RUNNING ;; esac\n"
    )
    assert [path.name for path in remove_leftovers(staging_folder(tmp_path, "7"))] == [
        "segformer_spark-5",
        "segformer_spark-6",
    ]
    assert staging_folder(tmp_path, "7").is_dir()
    assert staging_folder(tmp_path, "8").is_dir()


def test_where_and_whether() -> None:
    assert local_scratch({}) == Path("/tmp")
    assert local_scratch({"TMPDIR": "/t", "SLURM_TMPDIR": "/s"}) == Path("/s")
    assert local_scratch({"TMPDIR": "/t", "LOCAL_SCRATCH": "/l"}) == Path("/l")
    assert [wants_staging(env) for env in ({}, {"STAGE_DATA": "0"}, {"STAGE_DATA": ""}, {"STAGE_DATA": "1"})] == [
        False, False, False, True,
    ]  # fmt: skip
    with pytest.raises(UserError, match="STAGE_DATA=yes"):
        wants_staging({"STAGE_DATA": "yes"})
