"""Metadata is in pyproject.toml; a wheel also carries what `segformer-spark init` lays into a project folder."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "ds_configs", "slurm")


class BuildWithProject(build_py):
    """Copies the project's folders into the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "segformer_spark" / "project"
        shutil.rmtree(target, ignore_errors=True)
        for name in FOLDERS:
            shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.log"))


setup(cmdclass={"build_py": BuildWithProject})
