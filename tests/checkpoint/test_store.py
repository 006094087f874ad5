from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segformer_spark.checkpoint.names import step_of
from segformer_spark.checkpoint.store import CheckpointStore, StoredState, read, verify
from segformer_spark.errors import CheckpointError, UserError
from tests.ranks import forked


def stored(step: int) -> StoredState:
    return StoredState(
        model={"w": torch.full((50, 50), float(step)), "n": torch.tensor(step)},
        moments={"exp_avg": {"w": torch.ones(2, 3) * step}, "exp_avg_sq": {"w": torch.zeros(2, 3).T.contiguous()}},
        state={"progress": {"step": step}},
    )


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    path = store.save(12, stored(12))
    assert path.name == "step-00000012"
    verify(path)
    back = read(path)
    assert torch.equal(back.model["w"], stored(12).model["w"])
    assert torch.equal(back.moments["exp_avg"]["w"], stored(12).moments["exp_avg"]["w"])
    assert back.state == {"progress": {"step": 12}}


def test_the_newest_are_kept_and_saving_twice_replaces(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 5, 10, 10):
        store.save(step, stored(step))
    assert [p.name for p in store.committed()] == ["step-00000005", "step-00000010"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", "step-00000005", "step-00000010"]


@pytest.mark.parametrize("keep", range(1, 8))
def test_as_many_are_kept_as_asked_for(tmp_path: Path, keep: int) -> None:
    """Two at least: the newest may prove damaged."""
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(1, 10):
        store.save(step, stored(step))
        assert [int(p.name[-8:]) for p in store.committed()] == list(range(max(1, step - max(2, keep) + 1), step + 1))


def steps_of(store: CheckpointStore) -> list[int]:
    return [step_of(path) for path in store.committed()]


def test_the_best_and_every_nth_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, keep_every=10)
    for step in range(2, 33, 2):
        store.save(step, stored(step), best_step=14 if step >= 14 else None)
    assert steps_of(store) == [10, 14, 20, 30, 32]
    store.save(34, stored(34), best_step=34)
    assert steps_of(store) == [10, 20, 30, 32, 34], "what is no longer the best goes"
    assert [step_of(path) for path in CheckpointStore(tmp_path, keep=2).prune(20)] == [10, 30]
    assert steps_of(store) == [20, 32, 34]


def test_the_one_just_written_is_never_removed(tmp_path: Path) -> None:
    """After falling back past a damaged checkpoint, steps count up from below its number."""
    store = CheckpointStore(tmp_path, keep=2)
    for step in (200, 300):
        store.save(step, stored(step))
    assert store.save(160, stored(160)) in store.committed()
    assert steps_of(store) == [160, 300]


def test_later_steps_are_discarded_when_a_run_goes_on_from_an_earlier_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (100, 150, 200):
        store.save(step, stored(step))
    store.discard_after(150)
    assert [p.name for p in store.committed()] == ["step-00000100", "step-00000150"]


def test_a_replacement_cut_off_between_its_renames_is_undone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(7, stored(7))
    path.rename(tmp_path / ".step-00000007.old")
    (tmp_path / ".step-00000007.99.tmp").mkdir()
    store.clean()
    assert store.newest_intact() == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", path.name]


class Killed(BaseException):
    """What a kill is to the code that it meets."""


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_kill_while_later_checkpoints_are_discarded_brings_none_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """A replacement that was cut off is undone, a deletion is not."""
    store = CheckpointStore(tmp_path, keep=3)
    for step in (100, 150, 200):
        store.save(step, stored(step))
    calls, rmtree = 0, shutil.rmtree

    def killed_at(path: Path, ignore_errors: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == before + 1:
            raise Killed
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("segformer_spark.checkpoint.store.shutil.rmtree", killed_at)
    with pytest.raises(Killed):
        store.discard_after(100)
    monkeypatch.undo()
    there = [p.name for p in store.committed()]
    store.clean()
    assert [p.name for p in store.committed()] == there
    assert not list(tmp_path.glob(".step-*"))
    store.discard_after(100)
    assert [p.name for p in store.committed()] == ["step-00000100"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "zero_tail", "cut", "remove"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, file: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    good = store.save(1, stored(1))
    bad = store.save(2, stored(2)) / file
    content = bytearray(bad.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "zero_tail":
        content[-4:] = b"\1\2\3\4"
    elif damage == "cut":
        del content[-3:]
    bad.unlink()
    if damage != "remove":
        bad.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=file):
        verify(bad.parent)
    assert store.newest_intact() == good


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.save(1, stored(1))
    (path / "manifest.json").unlink()
    assert store.committed() == []
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        store.newest_intact()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        verify(path)


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(files={}), "lacks model.safetensors, optimizer.safetensors, state.json"),
        (lambda m: m["files"].pop("state.json"), "lacks state.json"),
        (lambda m: m["files"].update({"../evil": m["files"]["state.json"]}), "names ../evil"),
        (lambda m: m.update(step=3), "is of step 3"),
        (lambda m: m.update(format=9), "format 9"),
        (lambda m: m.update(files=7), "cannot be read"),
        (lambda m: m.clear(), "cannot be read"),
    ],
)
def test_a_manifest_is_not_trusted_for_completeness(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    good, bad = store.save(1, stored(1)), store.save(2, stored(2))
    edit_manifest(bad, edit)
    with pytest.raises(CheckpointError, match=message):
        verify(bad)
    assert store.newest_intact() == good


def test_checkpoints_that_are_gone_are_no_start_at_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.newest_intact() is None
    assert not store.has_begun
    first, second = store.save(1, stored(1)), store.save(2, stored(2))
    shutil.rmtree(second)
    assert store.newest_intact() == first
    assert "the checkpoint of step 2, the newest that was saved, is gone" in caplog.text
    shutil.rmtree(first)
    assert store.has_begun
    with pytest.raises(CheckpointError, match=r"its checkpoints, to step 2, are gone.*--overwrite"):
        store.newest_intact()


@pytest.mark.parametrize("group", ["model", "moments", "average"])
def test_a_poisoned_checkpoint_is_passed_over(tmp_path: Path, group: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a version that did not look before it saved."""
    store = CheckpointStore(tmp_path, keep=3)
    good = store.save(1, stored(1))
    poison = {"w": torch.tensor([1.0, float("inf")])}
    changed = {"model": {"model": poison}, "moments": {"moments": {"exp_avg": poison}}, "average": {"average": poison}}
    bad = dataclasses.replace(stored(2), **changed[group])
    store.save(2, bad)
    assert store.newest_intact() == good
    assert "w (" in caplog.text
    assert "not finite" in caplog.text


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(1, stored(1))
    (tmp_path / ".step-00000002.77.tmp").mkdir()
    assert [p.name for p in store.committed()] == ["step-00000001"]
    store.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", "step-00000001"]


def write_on_and_on(folder: Path) -> None:
    torch.set_num_threads(1)
    store = CheckpointStore(folder, keep=2)
    for step in range(1, 10**6):
        w = {"w": torch.full((200, 500), float(step))}
        store.save(step, StoredState(w, {"exp_avg": w}, {"step": step}))


def test_kill_at_any_moment_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        process = forked(write_on_and_on, folder)
        while not list(folder.glob("step-*")):
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        process.kill()
        process.join()
        store = CheckpointStore(folder, keep=2)
        for path in store.committed():
            verify(path)
        newest = store.newest_intact()
        assert newest is not None
        assert float(read(newest).model["w"][0, 0]) == read(newest).state["step"]


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    good = store.save(1, stored(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written.*what was there is untouched"):
            store.save(2, stored(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert store.newest_intact() == good
    assert sorted(os.listdir(tmp_path)) == ["newest", "step-00000001"]
