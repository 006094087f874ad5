"""From the command line and the launcher's environment to the ranks that work."""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segformer_spark.config.load import ResolvedConfig
    from segformer_spark.config.schema import HardwareConfig
    from segformer_spark.distributed.process_group import Group


@contextmanager
def joined(hardware: HardwareConfig) -> Iterator[Group]:
    """The ranks that the launcher started, with logging and threads set up."""
    from segformer_spark.distributed.devices import choose_device, set_threads, use_deterministic_algorithms
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.distributed.launcher import stop_with_launcher
    from segformer_spark.distributed.process_group import process_group
    from segformer_spark.run.allocator import keep_freed_memory
    from segformer_spark.run.console import logger, setup_logging

    launch = detect_launch(os.environ)
    stop_with_launcher(launch)
    setup_logging(launch.rank, launch.world_size)
    if launch.notice:
        logger.info("%s", launch.notice)
    choose = functools.partial(choose_device, hardware.device, launch.local_rank)
    if hardware.deterministic:
        use_deterministic_algorithms()
    with process_group(launch, choose, hardware.timeout_minutes, hardware.peer_timeout) as group:
        if group.device.type == "cpu":
            keep_freed_memory()
        set_threads(hardware.threads or group.own_threads)
        yield group


def resolve(arguments: argparse.Namespace) -> ResolvedConfig:
    """The configuration of --config or --sweep, --set and, with --from-env, the environment."""
    from segformer_spark.config.load import load_config
    from segformer_spark.config.study import pick_run, resolve_run
    from segformer_spark.errors import UserError
    from segformer_spark.verbs.overrides import refuse_without_effect

    environment = os.environ if getattr(arguments, "from_env", False) else None
    if arguments.sweep is not None and arguments.config is not None:
        raise UserError("--sweep names its configuration itself; leave --config out")
    if arguments.sweep is None:
        resolved = load_config(arguments.config, overrides=arguments.overrides, environment=environment)
    else:
        resolved = resolve_run(pick_run(arguments.sweep, arguments.sweep_index), arguments.overrides, environment)
    refuse_without_effect(arguments.overrides, resolved.config)
    return resolved


def launch_variables(arguments: argparse.Namespace) -> Mapping[str, str]:
    """The environment if the batch script asks for it; a near miss of a known name is an error."""
    from segformer_spark.config.environment import read_environment

    if not arguments.from_env:
        return {}
    read_environment(os.environ)
    return os.environ


def name_unused_variables(verb: str, used: Sequence[str], not_used: Sequence[str] = ()) -> None:
    """Name, in one line, the settings in the environment that a verb does not use: a training job's, left over."""
    from segformer_spark.config.environment import read_environment
    from segformer_spark.run.console import logger
    from segformer_spark.verbs.overrides import is_used

    found = [override for override in read_environment(os.environ) if not is_used(override.dotted, used, not_used)]
    if found:
        names = ", ".join(override.source.removeprefix("environment ") for override in found)
        logger.info("in the environment and not used by %s: %s", verb, names)


def deadline(environment: Mapping[str, str]) -> float | None:
    """`job_end`, unless it is in the past: a run that believed it would save at step 0 and leave, again and again."""
    from segformer_spark.run.console import logger

    end = job_end(environment)
    if end is not None and end < time.time():
        logger.warning(
            "SLURM_JOB_END_TIME=%.0f is %.0f s in the past: this run goes on without a limit of its own",
            *(end, time.time() - end),
        )
        return None
    return end


def job_end(environment: Mapping[str, str]) -> float | None:
    """When SLURM ends the job, in seconds since the epoch; None outside of one, or where it does not say (< 23.02)."""
    text = environment.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() else None
