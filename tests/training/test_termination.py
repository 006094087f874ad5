"""SIGTERM at any moment from the start of the processes on: a little later none of them is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from segformer_spark.exit_codes import ExitCode
from tests.training.short_run import SHORT

ROOT = Path(__file__).parents[2]
MOMENTS = int(os.environ.get("TERMINATION_MOMENTS", "2"))
"""`TERMINATION_MOMENTS=20 pytest tests/training/test_termination.py -s` tries more and prints how long each took."""

_LONGEST, _HANG = 9.0, 120.0


def of_the_job(mark: str) -> list[psutil.Process]:
    """All processes that were started for it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_JOB") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.sweep) for n in range(1, MOMENTS))])
def test_every_process_ends(spark_root: Path, tmp_path: Path, number: int) -> None:
    draw = random.Random(f"{MOMENTS}/{number}")
    moment = _LONGEST * (number + draw.random()) / MOMENTS
    mark = uuid.uuid4().hex
    settings = [item for item in SHORT if not item.startswith("data.num_workers")]
    settings += ["data.num_workers=1", "training.epochs=1000", "training.batch_size=2", f"data.root={spark_root}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "segformer_spark", "train", *(f"--set={item}" for item in settings)]
    command += [f"--set=output.save_path={tmp_path / 'run'}"]
    environment = {**os.environ, "TEST_JOB": mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
        time.sleep(moment)
        running = of_the_job(mark)
        assert running, (tmp_path / "log").read_text()
        signalled = time.monotonic()
        for process in running:  # as SLURM does
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ended since it was listed
                process.send_signal(signal.SIGTERM)
        job.wait(_HANG)
        while of_the_job(mark):
            assert time.monotonic() - signalled < _HANG, of_the_job(mark)
            time.sleep(0.05)
    seconds = time.monotonic() - signalled
    said = (tmp_path / "log").read_text()
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step-*")) if (tmp_path / "run").exists() else []
    print(f"SIGTERM after {moment:.1f} s: all gone {seconds:.1f} s later, {len(saved)} checkpoints")
    assert not re.search(r"^\[rank .*Traceback", said, re.MULTILINE), said
    assert job.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM, 1, ExitCode.STOPPED), said
