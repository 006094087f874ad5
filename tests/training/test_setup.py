"""What the ranks read when a training starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from segformer_spark.checkpoint.store import StoredState
from segformer_spark.config.load import load_config
from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.training import train
from segformer_spark.training.setup import prepare
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import SHORT, short_run


def looks(group: Group, root: str) -> tuple[int, list[str]]:
    """How often this rank asks the file system about the data set while a training is prepared, and what it finds."""
    count = 0

    def counting(name: str) -> Any:
        original: Callable[..., Any] = getattr(os, name)

        def called(path: Any = ".", *rest: Any, **options: Any) -> Any:
            nonlocal count
            count += str(path).startswith(root)
            return original(path, *rest, **options)

        return mock.patch.object(os, name, called)

    config = load_config(
        overrides=[*SHORT, "training.global_batch_size=3", "training.batch_size=1", f"data.root={root}"]
    ).config
    with counting("stat"), counting("scandir"), counting("listdir"), counting("open"):
        setup = prepare(config, group)
    sets = (setup.train_set, setup.val_set)
    return count, [data.sample_id(index) for data in sets for index in range(len(data))]


def test_rank_0_alone_reads_lists_and_folders(tmp_path: Path) -> None:
    """Whatever the number of images: with 160,000 of them and 256 ranks it would be millions of questions."""
    found = {}
    for number in (4, 12):
        root = tmp_path / str(number)
        write_demo_set(root, num_train=number, num_val=4, num_test=1, size=64, seed=0)
        results = run_on_ranks(3, looks, str(root))
        assert all(ids == results[0][1] for _, ids in results)
        assert len(results[0][1]) == number + 4
        found[number] = [count for count, _ in results]
    assert found[4][1:] == found[12][1:] == [0, 0]
    assert found[12][0] > found[4][0] > 0


def resumed(group: Group, root: str, path: str) -> int:
    """How often this rank reads a checkpoint when a run is resumed."""
    count = 0
    original = train.read

    def counted(source: Path) -> StoredState:
        nonlocal count
        count += 1
        return original(source)

    with mock.patch.object(train, "read", counted):
        losses = short_run(group, root, path, ("training.global_batch_size=3",), "auto")
    assert losses, "it went on"
    return count


def test_rank_0_alone_reads_the_checkpoint(tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    write_demo_set(root, num_train=9, num_val=4, num_test=1, size=64, seed=0)
    run_on_ranks(3, short_run, str(root), str(run), ("training.global_batch_size=3",), None, 2)
    assert run_on_ranks(3, resumed, str(root), str(run)) == [1, 0, 0]
