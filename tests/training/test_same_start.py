"""Ranks that were started with something else than rank 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from segformer_spark.errors import ConfigError
from segformer_spark.training import same_start
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run


def different(group: Group, root: str, path: str, what: str) -> str:
    """Rank 1 has another configuration, version or run folder, or a data folder of its own."""
    overrides: tuple[str, ...] = ("training.max_steps=1",)
    if group.rank == 1:
        if what == "version":
            same_start.__version__ = "9.9"
        elif what == "folder":
            path += "-other"
        else:
            overrides = (*overrides, *what.split())
    try:
        short_run(group, root, path, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("training.optimizer.lr=0.5", "training.optimizer.lr is 0.5, rank 0 has 0.001"),
        ("version", "version of segformer_spark is '9.9', rank 0 has"),
        ("folder", "run folder is"),
    ],
)
def test_the_rank_is_named_with_what_it_has(spark_root: Path, tmp_path: Path, what: str, said: str) -> None:
    for message in run_on_ranks(2, different, str(spark_root), str(tmp_path / "run"), what):
        assert message.startswith("rank 1 on ")
        assert said in message
    assert not (tmp_path / "run").exists()


def test_places_and_threads_are_a_nodes_own(spark_root: Path, tmp_path: Path) -> None:
    own = "hardware.threads=2 data.num_workers=1"
    assert run_on_ranks(2, different, str(spark_root), str(tmp_path / "run"), own) == ["", ""]
