"""A built wheel, outside of the clone, in an environment that sees the installed dependencies only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segformer_spark import __version__
from segformer_spark.config.load import PROJECT_ROOT
from tests.once import made_once


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""

    def make(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(PROJECT_ROOT / name, source / name)
        for name in ("segformer_spark", "configs", "ds_configs", "slurm"):
            shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-build-isolation", "--quiet"]
        subprocess.run([*pip, "wheel", *options, "--wheel-dir", folder, source], check=True)
        (wheel,) = folder.glob(f"segformer_spark-{__version__}-*.whl")
        subprocess.run([*pip, "install", *options, "--target", folder / "site", wheel], check=True)
        shutil.rmtree(source)

    return made_once(tmp_path_factory, "wheel", make) / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", "from segformer_spark.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import segformer_spark; print(segformer_spark.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(installed / "segformer_spark" / "__init__.py")


def test_init_lays_out_a_project_from_which_jobs_are_submitted(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "init", "project")
    assert done.returncode == 0, done.stderr
    project = tmp_path / "project"
    for name in ("configs", "ds_configs", "slurm"):
        own = {str(p.relative_to(project)) for p in (project / name).rglob("*") if p.is_file()}
        theirs = {str(p.relative_to(PROJECT_ROOT)) for p in (PROJECT_ROOT / name).rglob("*") if p.is_file()}
        assert own == theirs
    assert os.access(project / "slurm" / "segformer_train.sh", os.X_OK)
    again = run(installed, tmp_path, "init", "project")
    assert again.returncode == 2
    assert "exist already" in again.stderr


def test_a_project_folders_deepspeed_files_are_used(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "init", "project")
    project = tmp_path / "project"
    plan = ("train", "--config", "configs/spark_b0.yaml", "--dry-run", "--no-measure")
    done = run(installed, project, *plan)
    assert "deepspeed: zero1.json" in done.stdout, done.stderr
    (project / "ds_configs" / "zero1.json").write_text("{}")
    assert "zero1.json" in run(installed, project, *plan).stderr
    done = run(installed, tmp_path, "train", "--config", "project/configs/spark_b0.yaml", "--dry-run", "--no-measure")
    assert "deepspeed: zero1.json" in done.stdout, "outside of a project those that the package carries"
