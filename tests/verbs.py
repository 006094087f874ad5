"""Runs a verb of the command line in a process of its own that is a fork of a warmed one: no imports, no wait."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.cli import main
from tests.ranks import forked


@dataclass(frozen=True)
class FinishedVerb:
    """As subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


def leave(*arguments: str) -> int:
    """Run a verb in this process; returns the status that it leaves with."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def start_forked(command: Sequence[str]) -> int:
    """In place of a study's start of a training: the same verb in a fork of a warmed process."""
    done = run_verb(*command[command.index("segformer_spark") + 1 :])
    print(done.stdout, done.stderr)
    return done.returncode


def run_verb(*arguments: str, cwd: Path | None = None, timeout: float = 120, **environment: str) -> FinishedVerb:
    """Run to the end, with standard output and error caught.

    Raises:
        AssertionError: it did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start_verb(*arguments, out=out, err=err, cwd=cwd, **environment)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{arguments} did not end in {timeout} s:\n{out.read_text()}{err.read_text()}")
        assert process.exitcode is not None
        return FinishedVerb(process.exitcode, out.read_text(), err.read_text())


def start_verb(*arguments: str, out: Path, err: Path, cwd: Path | None = None, **environment: str) -> Any:
    """Start it, as leader of a process group of its own; returns the process."""
    whole = {**os.environ, **environment}
    return forked(_call, arguments, whole, str(cwd or Path.cwd()), str(out), str(err))


def _call(arguments: tuple[str, ...], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, number in ((out, 1), (err, 2)):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for the life of the process
    sys.argv = ["segformer-spark", *arguments]
    main(arguments)
