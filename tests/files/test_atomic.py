from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segformer_spark.errors import UserError
from segformer_spark.files.atomic import atomic_file, atomic_folder, recover_folder, write_json, write_text


def test_files_replace_and_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["x.txt"]


def test_an_error_inside_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"tw")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_full_disk_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"x\.txt: cannot be written: No space left on device"):
        write_text(path, "two")
    with pytest.raises(UserError, match="No space left"), atomic_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("x")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_files_are_synced_before_they_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda d: (events.append("sync"), sync(d))[1])
    monkeypatch.setattr(Path, "replace", lambda s, t: (events.append("replace"), replace(s, t))[1])
    write_text(tmp_path / "x", "1")
    assert events == ["sync", "replace", "sync"], "contents, rename, folder"


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "best"
    for name in ("one", "two"):
        with atomic_folder(path) as folder:
            (folder / name).write_text("x")
    assert os.listdir(path) == ["two"]
    assert os.listdir(tmp_path) == ["best"]
    with pytest.raises(KeyError), atomic_folder(path) as folder:
        (folder / "three").write_text("x")
        raise KeyError
    assert os.listdir(path) == ["two"]


def test_a_replacement_cut_off_between_its_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best"
    with atomic_folder(path) as folder:
        (folder / "one").write_text("x")
    path.rename(tmp_path / ".best.old")
    recover_folder(path)
    assert os.listdir(path) == ["one"]
    recover_folder(path)
    assert os.listdir(path) == ["one"]


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int, expected: int) -> None:
    """safetensors writes through files that only the owner may read."""
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "best") as folder:
            save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
            (folder / "card.json").write_text("{}")
        write_text(tmp_path / "log.txt", "x")
    finally:
        os.umask(before)
    files = [*(tmp_path / "best").iterdir(), tmp_path / "log.txt"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {expected}
    assert stat.S_IMODE((tmp_path / "best").stat().st_mode) == 0o777 & ~umask


def test_the_group_of_a_shared_folder_stays(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, _other_group())
    shared.chmod(0o2775)
    with atomic_folder(shared / "best") as folder:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    file = shared / "best" / "model.safetensors"
    assert file.stat().st_gid == shared.stat().st_gid
    assert file.parent.stat().st_mode & stat.S_ISGID


def _other_group() -> int:
    """A group that is not this process's first one, where it may give files away."""
    return 12345 if os.geteuid() == 0 else os.getgid()
