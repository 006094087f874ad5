"""Shared fixtures: a small rendered SPARK set, and one short training run on it."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Two test workers on two cores: more threads only contend.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for two threads all the same, they sleep while they wait and leave the core to the other worker.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from segformer_spark.data.demo.write import write_demo_set

# A slow machine is no failure. `make fuzz` loads the other profile.
settings.register_profile("suite", deadline=None, max_examples=200)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile("suite")

NUM_TRAIN, NUM_VAL, NUM_TEST, SIDE = 12, 7, 5, 96


def pytest_collection_finish() -> None:
    """Collections pass over what was imported, half a second each."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that count their objects at the end are content."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def spark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered set; tests must not change it."""
    root = tmp_path_factory.mktemp("spark") / "set"
    write_demo_set(root, num_train=NUM_TRAIN, num_val=NUM_VAL, num_test=NUM_TEST, size=SIDE, seed=5)
    return root


@pytest.fixture
def own_spark_root(spark_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(spark_root, tmp_path / "own_set"))


@pytest.fixture(scope="session")
def trained_run(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of three epochs; tests must not change it."""
    from tests.ranks import run_on_ranks
    from tests.training.short_run import short_run

    path = tmp_path_factory.mktemp("runs") / "short"
    run_on_ranks(1, short_run, str(spark_root), str(path))
    return path
