"""Runs a verb of the command line in a process of its own that is a fork of a warmed one: no imports, no wait."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.ranks import context


@dataclass(frozen=True)
class FinishedVerb:
    """As subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


def run_verb(*arguments: str, cwd: Path | None = None, timeout: float = 120, **environment: str) -> FinishedVerb:
    """Run to the end, with standard output and error caught.

    Raises:
        AssertionError: it did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        whole = {**os.environ, **environment}
        process = context.Process(target=_call, args=(arguments, whole, str(cwd or Path.cwd()), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{arguments} did not end in {timeout} s:\n{out.read_text()}{err.read_text()}")
        assert process.exitcode is not None
        return FinishedVerb(process.exitcode, out.read_text(), err.read_text())


def _call(arguments: tuple[str, ...], environment: dict[str, str], cwd: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, number in ((out, 1), (err, 2)):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for the life of the process
    sys.argv = ["segformer-spark", *arguments]
    from segformer_spark.cli import main

    main(arguments)
