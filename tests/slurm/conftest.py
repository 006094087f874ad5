"""One cluster for all tests in here, and projects to submit from."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from segformer_spark.config.load import PROJECT_ROOT, load_config
from segformer_spark.training.stop import StopRequest
from segformer_spark.training.train import TrainOptions, run_training
from tests.once import made_once
from tests.ranks import Group, run_on_ranks
from tests.slurm.cluster import Cluster, missing
from tests.tiny import TINY
from tests.waiting import wait_for

PROGRAM = Path(__file__).with_name("rank_program.py")

SHORT: dict[str, dict[str, Any]] = {
    "data": {"image_size": 64, "num_workers": 0},
    "model": {
        "variant": "custom",
        "custom": {
            "depths": list(TINY.depths),
            "hidden_sizes": list(TINY.hidden_sizes),
            "num_heads": list(TINY.num_heads),
            "decoder_size": TINY.decoder_size,
        },
    },
    "training": {
        "optimizer": {"lr": 1e-3},
        "scheduler": {"warmup_epochs": 0.5},
    },
    "output": {"log_every_steps": 1, "tensorboard": False},
    "hardware": {"threads": 1, "device": "cpu", "peer_timeout": 6.0},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest tests first, so that no worker is left with them at the end; a real training beside a stand-in."""
    own = [item for item in items if item.path.parent == PROGRAM.parent]
    rest = [item for item in items if item.path.parent != PROGRAM.parent]
    real = [item for item in own if item.path.name == "test_training.py"]
    long = [item for item in own if item.get_closest_marker("long")]
    short = [item for item in own if item not in real and item not in long]
    pairs = [item for pair in zip_longest(real, short[: len(real)]) for item in pair if item is not None]
    items[:] = [*pairs, *long, *short[len(real) :], *rest]


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """Four nodes: at most three are used, one is spare."""
    reason = missing()
    if reason is not None:
        if os.environ.get("SLURM_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="slurm-"))
    base.chmod(0o755)
    try:
        with Cluster(base / "c", 4) as cluster:
            yield cluster
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with all nodes idle, before and after."""
    running_cluster.repair()
    yield running_cluster
    running_cluster.repair()


@dataclass
class Project:
    """A folder to submit from, with a space in its path."""

    cluster: Cluster
    root: Path
    config: Path
    environment: dict[str, str] = field(default_factory=dict)

    def submit(self, script: str, *options: str, arguments: tuple[str, ...] = (), **environment: str) -> int:
        """Sbatch a script of slurm/ with options in front of it."""
        env = {**self.environment, **environment}
        return self.cluster.submit(*options, f"slurm/{script}", *arguments, cwd=self.root, env=env)

    def log(self, job: int | str) -> str:
        """The job's log so far."""
        found = list(self.root.glob(f"*-{job}.log"))
        return found[0].read_text() if found else ""

    def until(self, job: int | str, text: str) -> None:
        """Wait for a text in the log."""
        try:
            wait_for(lambda: text in self.log(job), f"{text!r} in the log")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the log is\n{self.log(job)}") from None

    def facts(self, **wanted: Any) -> list[dict[str, Any]]:
        """What the ranks of the stand-in program saw."""
        path = Path(self.environment["PROGRAM_FACTS"])
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if all(line[key] == value for key, value in wanted.items())]

    def run(self, name: str) -> Path:
        return self.root / "runs" / name


EPOCHS = 16  # 48 steps: seconds, so that what a test does after the first steps is in time


def write_config(path: Path, data: Path, world_size: int, global_batch: int) -> Path:
    """A short training with one micro-batch per step."""
    batch = {"global_batch_size": global_batch, "batch_size": global_batch // world_size}
    tree = {
        **SHORT,
        "data": {**SHORT["data"], "root": str(data)},
        "model": {**SHORT["model"], "pretrained": "none"},
        "training": {**SHORT["training"], **batch, "epochs": EPOCHS, "validation": {"every_epochs": EPOCHS}},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


Reference = Callable[..., dict[str, torch.Tensor]]


def train_here(group: Group, config: str, path: str) -> None:
    run_training(load_config(config, overrides=[f"output.save_path={path}"]), TrainOptions(), group, StopRequest())


@pytest.fixture(scope="session")
def undisturbed(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The final weights of a run without SLURM, by world size and images per step; trained once for all workers."""

    def get(world_size: int, global_batch: int) -> dict[str, torch.Tensor]:
        def make(folder: Path) -> None:
            config = write_config(folder / "short.yaml", spark_root, world_size, global_batch)
            run_on_ranks(world_size, train_here, str(config), str(folder / "run"))

        folder = made_once(tmp_path_factory, f"reference-{world_size}-{global_batch}", make)
        return load_file(folder / "run" / "final" / "model.safetensors")

    return get


def make_project(cluster: Cluster, folder: Path, data: Path, python: str) -> Project:
    root = folder / "my project"
    root.mkdir()
    for name in ("slurm", "configs", "ds_configs"):
        (root / name).symlink_to(PROJECT_ROOT / name)
    binary = folder / "env" / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.write_text(python)
    binary.chmod(0o755)
    config = write_config(folder / "short.yaml", data, 2, 4)
    environment = {"VENV": str(binary.parents[1]), "CONFIG": str(config), "DS_ACCELERATOR": "cpu", "RUN_NAME": "r"}
    return Project(cluster, root, config, {**environment, "PROGRAM_FACTS": str(folder / "facts")})


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path, spark_root: Path) -> Project:
    """Jobs that train for real."""
    return make_project(cluster, tmp_path, spark_root, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')


@pytest.fixture
def quick_project(cluster: Cluster, tmp_path: Path, spark_root: Path) -> Project:
    """Jobs whose training, evaluation, inference and benchmark are the stand-in program's."""
    own = " | ".join(("train", "evaluate", "submit", "bench"))
    python = f'case "$3" in\n{own}) exec "{sys.executable}" "{PROGRAM}" "$@" ;;\nesac\nexec "{sys.executable}" "$@"\n'
    project = make_project(cluster, tmp_path, spark_root, f"#!/bin/sh\n{python}")
    project.environment["RESTART_IN_PLACE"] = "0"  # an agent would be the real one, and fork the real training
    return project
