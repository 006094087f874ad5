"""A run with one damaged file: no verb hangs or ends with a traceback, and one that cannot go on names it."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import damage
from tests.damage import Damage
from tests.ranks import run_on_ranks
from tests.results import add_results
from tests.training.short_run import SHORT, short_run
from tests.verbs import run_verb

KINDS: tuple[Damage, ...] = (
    damage.flip, damage.zero_tail, damage.cut, damage.halve, damage.remove, damage.empty, damage.foreign,
    damage.list_in_its_place, damage.pipe, damage.folder, damage.link_loop,
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped_run(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after seven of nine steps, with a best model, an evaluation, a submission and a report."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    settings = ("output.checkpoint_every_steps=2", "output.tensorboard=true")
    run_on_ranks(1, short_run, str(spark_root), str(run), settings, None, 7)
    add_results(run, spark_root)
    return run


def resume(run: Path, root: Path) -> Sequence[str]:
    settings = [*SHORT, "training.batch_size=4", "output.checkpoint_every_steps=2", "output.tensorboard=true"]
    settings += [f"output.save_path={run}", f"data.root={root}"]
    return ["train", *(part for one in settings for part in ("--set", one)), "--resume", "auto"]


def report(run: Path, root: Path) -> Sequence[str]:
    return ["report", str(run)]


def verify(run: Path, root: Path) -> Sequence[str]:
    return ["verify", str(run)]


def submit(run: Path, root: Path) -> Sequence[str]:
    return ["submit", str(run), "--images", str(root / "stream-1-test")]


READERS: tuple[Callable[[Path, Path], Sequence[str]], ...] = (
    lambda run, root: ["runs", "list", str(run.parent)],
    lambda run, root: ["runs", "show", str(run)],
    lambda run, root: ["runs", "plot", str(run)],
    report,
    verify,
    lambda run, root: ["checkpoints", "list", str(run)],
    lambda run, root: ["replay", str(run), "--step", "6"],
    lambda run, root: ["evaluate", str(run), "--split", "val"],
    submit,
)


def fault_of(run: Path, root: Path, name: Path, how: Damage, verb: Callable[[Path, Path], Sequence[str]]) -> str:
    """What a verb did wrong with a copy of the run in which this file is damaged; nothing if it did not."""
    own = run.parent / f"of-{how.__name__}" / "run"
    shutil.rmtree(own.parent, ignore_errors=True)
    shutil.copytree(run, own, symlinks=True)
    if (own / name).stat().st_size == 0 and how in (damage.flip, damage.zero_tail):
        return ""
    how(own / name, random.Random(0))
    words = verb(own, root)
    what = f"{how.__name__} of {name}, {' '.join(words[:2])}"
    try:
        done = run_verb(*words, timeout=60)
    except AssertionError as hang:
        return f"{what}: {str(hang)[-300:]}"
    said = done.stdout + done.stderr
    if "Traceback" in said or done.returncode not in (0, 1, 2):
        return f"{what}: status {done.returncode}: {said[-1500:]}"
    if done.returncode and not any(part in said for part in name.parts):
        return f"{what}: does not name it: {said[-600:]}"
    return ""


def distinct_files(run: Path) -> list[Path]:
    """One of each kind of file: names that differ in a number or a class alone are one kind."""
    inside = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    return list({re.sub("[0-9]+|_[A-Za-z0-9]+__", "0", str(path)): path for path in inside}.values())


@pytest.mark.parametrize(
    ("pattern", "how", "verb"),
    [
        ("config.yaml", damage.remove, resume),
        ("config.yaml", damage.link_loop, resume),
        ("data_files.json", damage.link_loop, resume),
        ("log.txt", damage.folder, resume),
        ("steps.bin", damage.pipe, resume),
        ("training_params.json", damage.halve, resume),
        ("metrics.jsonl", damage.pipe, READERS[0]),
        ("evaluation/val/counts.npz", damage.pipe, verify),
        ("evaluation/val/gallery/*-error.png", damage.pipe, report),
        ("submission/SHA256SUMS", damage.folder, submit),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_what_ended_without_its_name_once(
    pattern: str, how: Damage, verb: Callable[[Path, Path], Sequence[str]], stopped_run: Path, spark_root: Path
) -> None:
    name = next(stopped_run.glob(pattern)).relative_to(stopped_run)
    assert not (fault := fault_of(stopped_run, spark_root, name, how, verb)), fault


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.__name__)
def test_some_files(how: Damage, stopped_run: Path, spark_root: Path) -> None:
    """Another file for each kind, before a resumed training or another verb; test_every_file has all."""
    number = KINDS.index(how)
    name = random.Random(how.__name__).choice(distinct_files(stopped_run))
    verb = resume if number % 2 else READERS[number % len(READERS)]
    assert not (fault := fault_of(stopped_run, spark_root, name, how, verb)), fault


@pytest.mark.sweep
@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.__name__)
def test_every_file(how: Damage, stopped_run: Path, spark_root: Path) -> None:
    """Each file before a resumed training, and before one of the other verbs."""
    faults = []
    for number, name in enumerate(distinct_files(stopped_run)):
        for verb in (resume, READERS[(number + KINDS.index(how)) % len(READERS)]):
            faults.append(fault_of(stopped_run, spark_root, name, how, verb))
    assert not any(faults), "\n\n".join(fault for fault in faults if fault)
