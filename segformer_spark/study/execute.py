"""The runs of a study on this machine, one after another. What is finished is left as it is; the rest continues."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.checkpoint.compatibility import changed_settings
from segformer_spark.config.load import ResolvedConfig, run_path
from segformer_spark.config.study import Study, StudyRun, resolve_run
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.models.registry import find_architecture
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.listing import record_of
from segformer_spark.run.outcome import FINISHED
from segformer_spark.run.verb_process import verb_command


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study with its configuration and its directory."""

    index: int
    run: StudyRun
    resolved: ResolvedConfig

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(run_path(self.resolved.config))

    @property
    def state(self) -> str:
        """As the run's record has it; "missing" without one."""
        return str(record_of(self.directory).get("status", "missing"))

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end.

        Raises:
            UserError: a run of this name was trained with other settings.
        """
        if self.state not in FINISHED:
            return False
        changed = changed_settings(self.directory.load_config().config, self.resolved.config)
        wanted = self.resolved.config.training.global_batch_size
        trained = record_of(self.directory).get("runtime", {}).get("global_batch")
        if wanted not in (None, trained):
            changed.append(f"the global batch was {trained}, now {wanted}")
        if changed:
            raise UserError(
                f"{self.directory.path}: this run was trained with other settings than the study has now:\n  "
                + "\n  ".join(changed)
                + "\nRemove the folder to train it anew, or give the study another name."
            )
        return True


def plan_runs(
    study: Study,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    seeds: Collection[int] = (),
) -> list[PlannedRun]:
    """All runs, or those with these seeds, with their configurations.

    Raises:
        ConfigError: one of them is not in order, or has no such seed; nothing has been started then.
    """
    known = {run.seed for run in study.runs}
    if not known.issuperset(seeds):
        raise ConfigError(f"{study.path}: its seeds are {', '.join(map(str, sorted(known)))}; --seeds takes of these")
    planned = []
    for index, run in enumerate(study.runs):
        if seeds and run.seed not in seeds:
            continue
        resolved = resolve_run(run, overrides, environment)
        find_architecture(resolved.config.model)
        planned.append(PlannedRun(index, run, resolved))
    paths = [one.directory.path for one in planned]
    if len(set(paths)) < len(paths):
        raise ConfigError(
            f"{study.path}: several runs would lie in {max(paths, key=paths.count)}; output.save_path (SAVE_PATH) of a "
            "study needs {name} in it"
        )
    return planned


def train_missing(study: Study, planned: Sequence[PlannedRun], options: Sequence[str], processes: int) -> None:
    """Train every run that is not finished, each in processes of its own.

    Args:
        options: of `train`, for every run.

    Raises:
        UserError: runs failed (the others were trained), or the user stopped one.
    """
    failed = []
    for number, one in enumerate(planned, 1):
        if one.is_finished:
            logger.info("%s: finished before", one.run.name)
            continue
        logger.info("run %d of %d: %s", number, len(planned), one.run.name)
        status = _start(_command(study.path, one.index, options, processes))
        if status in (ExitCode.STOPPED, -signal.SIGINT, -signal.SIGTERM, 130):
            raise UserError(f"{one.run.name}: stopped on request; the same command resumes from here")
        if status != 0:
            failed.append(one.run.name)
            logger.warning("%s failed with status %d; its own message stands above", one.run.name, status)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}. The same command tries them again and "
            "keeps the others; `report` in place of `run` reports what there is"
        )


def _start(command: Sequence[str]) -> int:
    """Run a command to its end. A request to stop is for it, which saves a checkpoint first; we wait."""
    process = subprocess.Popen(command)
    # The terminal sends SIGINT to both; SIGTERM comes to us alone.
    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda number, _: process.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(path: Path, index: int, options: Sequence[str], processes: int) -> list[str]:
    chosen = ["--sweep", os.fspath(path), "--sweep-index", str(index)]
    return verb_command(["train", *chosen, "--resume", "auto", *options], processes)
