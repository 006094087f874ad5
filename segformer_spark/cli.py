"""The command line: which verbs there are. Each stands in its own file in verbs/."""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segformer_spark import __version__
from segformer_spark.errors import PeersNotFound, PortTaken, ReplicasDiffer, TrainingDiverged, UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.run.job_variables import GENERATION
from segformer_spark.verbs import (
    agreement,
    anomaly,
    bench,
    checkpoints,
    data,
    demo,
    doctor,
    evaluate,
    export,
    inference,
    init,
    job,
    params,
    predict,
    replay,
    report,
    runs,
    study,
    sweep,
    train,
    tune,
    verify,
    weights,
)
from segformer_spark.verbs.arguments import Verb, with_every_set
from segformer_spark.verbs.renamed import with_current_names

if TYPE_CHECKING:
    from segformer_spark.distributed.environment import Launch


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `segformer-spark` and `python -m segformer_spark`; leaves with the verb's status."""
    given = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be text in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parse(given)
        verb: Verb = arguments.verb
        status = verb(arguments)
        sys.stdout.flush()
    except UserError as error:
        _print_error(error)
        own = {PeersNotFound: ExitCode.PEER_LOST, ReplicasDiffer: ExitCode.PEER_LOST, PortTaken: ExitCode.PORT_TAKEN}
        status = own.get(type(error), ExitCode.USER_ERROR)
        if isinstance(error, TrainingDiverged) and error.goes_on:
            status = ExitCode.DIVERGED
    except BrokenPipeError:
        # The reader of the output, such as head, has seen enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:  # noqa: BLE001 - a mistake of ours: its traceback, and whose it is among many ranks
        status = ExitCode.PEER_LOST if _print_broken_connection(error) else ExitCode.OWN_FAILURE
        if status == ExitCode.OWN_FAILURE:
            _print_crash(error)
    sys.stdout.flush()
    if status != 0 and "SLURM_STEP_ID" in os.environ and GENERATION not in os.environ:
        # srun ends the step at the first bad status, and drops what slurmstepd has not passed on yet.
        time.sleep(1)
    sys.exit(status)


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    if not given:
        parser.print_help()
        raise SystemExit(ExitCode.GOOD)
    try:
        return parser.parse_args(with_every_set(with_current_names(given)))
    except SystemExit:
        sys.stdout.flush()  # the help text: a pipe that is closed is noticed here
        raise


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="segformer-spark",
        description="Train, evaluate, predict and submit semantic segmentation, on one process or many nodes.",
        epilog="example:\n  segformer-spark data init photos/ --name leaves\n  segformer-spark VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    first = (init, demo, data, weights, params, train, sweep, tune, bench, doctor, job)
    then = (replay, evaluate, report, verify, inference, predict, export, study, agreement, anomaly, runs, checkpoints)
    for module in (*first, *then):
        module.add(subparsers)
    return parser


def _print_error(error: UserError) -> None:
    """Rank 0 speaks for errors that all ranks share; an error of one rank alone names it."""
    launch = _launch()
    if launch is None or launch.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif not error.shared:
        print(f"error on rank {launch.rank} ({socket.gethostname()}): {error}", file=sys.stderr, flush=True)


def _print_broken_connection(error: Exception) -> bool:
    """One line where another rank is gone, whose own words say why; false for other errors."""
    from segformer_spark.distributed.broken_connection import broken_connection

    why = broken_connection(error)
    launch = _launch()
    if why is None or launch is None:
        return False
    print(
        f"error: [rank {launch.rank} on {socket.gethostname()}] another rank is gone ({why}): this one ends, too",
        file=sys.stderr,
        flush=True,
    )
    return True


def _print_crash(error: Exception) -> None:
    """Every line with rank and host: a batch log holds all ranks' lines, mixed."""
    launch = _launch()
    who = f"[rank {launch.rank} on {socket.gethostname()}] " if launch is not None and launch.world_size > 1 else ""
    lines = "".join(traceback.format_exception(error)).splitlines()
    print("\n".join(who + line for line in lines), file=sys.stderr, flush=True)


def _launch() -> Launch | None:
    from segformer_spark.distributed.environment import detect_launch

    try:
        return detect_launch(os.environ)
    except UserError:
        return None
