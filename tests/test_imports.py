"""The architecture: dependencies point one way, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "segformer_spark"
FILES = sorted(PACKAGE.rglob("*.py"))

# A package may import from itself and from packages of lower layers.
LAYERS = [
    {"errors", "exit_codes", "__init__"},
    {"files"},
    {"config", "run", "ops"},
    {"kernels"},
    {"data", "models", "losses", "metrics", "distributed"},
    {"engine", "checkpoint"},
    {"evaluation"},
    {"training", "submission", "prediction", "report"},
    {"export", "verification"},
    {"demo", "cluster", "restart", "bench", "agreement", "anomaly"},
    {"study"},
    {"verbs"},
    {"cli", "api"},
    {"__main__"},
]
BESIDE = {("run", "config")}
"""Imports between packages of one layer that are meant."""


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(number for number, packages in enumerate(LAYERS) if name in packages)


def imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    own = package_of(path)
    if path == PACKAGE / "__init__.py":
        return  # names for type checkers; that it imports nothing is tested in test_api.py
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "segformer_spark" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        allowed = other == own or layer(other) < layer(own) or (own, other) in BESIDE
        assert allowed, f"{own} must not import {module}"


def test_only_the_engine_imports_deepspeed() -> None:
    users = {package_of(path) for path in FILES if any(m.split(".")[0] == "deepspeed" for m in imports(path))}
    assert users == {"engine"}


@pytest.mark.parametrize("name", ["ops", "kernels", "models", "losses", "metrics"])
def test_mathematics_knows_nothing_of_ranks(name: str) -> None:
    for path in (PACKAGE / name).glob("*.py"):
        assert not any("distributed" in module for module in imports(path)), path


def test_only_transforms_imports_albumentations() -> None:
    users = {path.name for path in FILES if "albumentations" in imports(path)}
    assert users == {"transforms.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, segformer_spark.cli as c; c.build_parser(); print({'torch', 'numpy', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_engines_are_built_in_three_places() -> None:
    """Everything else takes its steps from the stepper, which closes engine and loader; a replay begins anywhere."""
    builders = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Engine":
                builders.add(str(path.relative_to(PACKAGE)))
    assert builders == {"training/stepper.py", "training/train.py", "training/replay.py"}


def test_finished_models_are_opened_in_one_place() -> None:
    """Predictors of exported models come from a session; validation has the live model. The mean of checkpoints takes
    the names of the weights from the run's model."""
    callers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_model"
    }
    assert callers == {"evaluation/session.py", "checkpoint/averaged.py"}
