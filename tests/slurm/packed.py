"""An environment as one file."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from segformer_spark.config.load import PROJECT_ROOT


def pack(environment: Path) -> Path:
    """What `make env-archive` makes of an installed environment; make takes no path with a space."""
    (environment / ".installed").touch()
    archive = environment.with_name(f"{environment.name}.tar")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / environment.name
        shutil.copytree(environment, copy)
        command = ["make", "--old-file", str(copy / ".installed"), "env-archive", f"VENV={copy}"]
        subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True)
        shutil.move(f"{copy}.tar", archive)
    return archive
