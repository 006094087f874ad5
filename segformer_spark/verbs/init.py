"""`init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.errors import UserError
from segformer_spark.verbs.arguments import Subparsers, add_verb

FOLDERS = ("configs", "ds_configs", "slurm")


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "init",
        "Lay configurations and batch scripts into a project folder, from which jobs are submitted.",
        "segformer-spark init $SCRATCH/project",
        init,
    )
    parser.add_argument("folder", type=Path, help="folder to make, or one without these folders")


def init(arguments: argparse.Namespace) -> int:
    """Copy the folders; nothing that exists is touched."""
    import shutil
    import sys

    from segformer_spark.config.load import BUNDLED, PROJECT_ROOT

    target: Path = arguments.folder
    source = BUNDLED if BUNDLED.is_dir() else PROJECT_ROOT
    existing = [name for name in FOLDERS if (target / name).exists()]
    if existing:
        raise UserError(f"{target}: {', '.join(existing)} exist already", "Give another folder, or move them away.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            shutil.copytree(source / name, target / name)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    for script in (target / "slurm").rglob("*.sh"):
        script.chmod(script.stat().st_mode | 0o111)  # wheels do not keep it everywhere
    environment = Path(sys.executable).parent.parent
    print(f"{target}: {', '.join(f'{name}/' for name in FOLDERS)}")
    print("next, in this folder:")
    print(f"  export VENV={environment}    # the environment of the jobs")
    print("  SEGFORMER_VARIANT=b3 DATA_ROOT=/scratch/spark sbatch slurm/segformer_train.sh")
    return 0
