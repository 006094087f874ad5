"""`doctor`: whether this machine, this job, and training on it are as they should be."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segformer_spark.verbs.arguments import Subparsers, add_config, add_from_env, add_verb, positive
from segformer_spark.verbs.launch import joined, resolve

if TYPE_CHECKING:
    from segformer_spark.cluster.checks import Check
    from segformer_spark.config.schema import Config


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        "Check this machine (on a login node), with --job every node and rank of a job (slurm/segformer_doctor.sh), "
        "with --parity that DDP, ZeRO-1 and ZeRO-2 agree.",
        "segformer-spark doctor --config configs/spark_b2.yaml",
        doctor,
    )
    add_config(parser)
    add_from_env(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--job", action="store_true", help="check all ranks that srun or torchrun started, together")
    which.add_argument(
        "--parity", action="store_true", help="train the first steps under stages 0, 1 and 2 and compare"
    )
    which.add_argument("--quick", action="store_true", help="one second's checks of this node; speak only of problems")
    which.add_argument(
        "--excluded-nodes", action="store_true", help="list the nodes that failed jobs, as the next one leaves them out"
    )
    which.add_argument("--fingerprint", action="store_true", help="print one word for Python and all packages")
    parser.add_argument(
        "--names", action="store_true", help="with --excluded-nodes: only their names, as sbatch --exclude takes them"
    )
    parser.add_argument(
        "--forgive", metavar="NODE", nargs="+", default=None, help="with --excluded-nodes: forget these, or all"
    )
    parser.add_argument("--expect", metavar="WORD", default=None, help="with --quick: fingerprint to compare with")
    parser.add_argument("--steps", type=positive, default=3, help="with --parity: steps (default: %(default)s)")


def doctor(arguments: argparse.Namespace) -> int:
    """Run the checks that were asked for; status 1 when one fails."""
    from segformer_spark.cluster.node_checks import fingerprint

    if arguments.excluded_nodes:
        return _excluded_nodes(arguments.forgive, names_only=arguments.names)
    resolved = resolve(arguments)
    if arguments.fingerprint:
        print(fingerprint())
        return 0
    config = resolved.config
    if arguments.quick:
        return _quick(config, arguments.expect)
    if not arguments.job and not arguments.parity:
        from segformer_spark.cluster.kernel_checks import check_kernels
        from segformer_spark.cluster.node_checks import thorough_checks

        return _show([*thorough_checks(config, os.environ), check_kernels(config.hardware.device)])
    with joined(config.hardware) as group:
        if arguments.job:
            from segformer_spark.cluster.job_checks import job_checks

            return _show(job_checks(config, group, os.environ), visible=group.is_main)
        from segformer_spark.training.parity import compare_stages, describe

        parity = compare_stages(config, group, arguments.steps)
        if group.is_main:
            print("\n".join(describe(parity)))
    return 0 if parity.holds else 1


def _quick(config: Config, expected: str | None) -> int:
    """Problems of this node, each line with its name; silence where there are none."""
    from segformer_spark.cluster.bad_nodes import PREFLIGHT, bad_nodes, remember
    from segformer_spark.cluster.checks import OK, WARNING, Check, failures, table
    from segformer_spark.cluster.node_checks import quick_checks

    checks = quick_checks(config, os.environ, expected)
    before = bad_nodes(os.environ).get(_node())
    if before is not None:
        checks = [*checks, Check("node", WARNING, f"{_node()} {before}", "leave it out: sbatch --exclude=NODE")]
    for check in failures(checks):
        remember(_node(), PREFLIGHT, check.name, os.environ)
    lines = table([check for check in checks if check.state != OK])
    sys.stdout.write("".join(f"[{socket.gethostname()}] {line}\n" for line in lines))
    return 1 if failures(checks) else 0


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _excluded_nodes(forgiven: Sequence[str] | None, *, names_only: bool) -> int:
    from segformer_spark.cluster.bad_nodes import bad_nodes, forgive, known_to_slurm

    if forgiven is not None:
        count = forgive(os.environ, None if "all" in forgiven else set(forgiven))
        print(f"{count} nodes are not excluded any more")
        return 0
    bad = bad_nodes(os.environ)
    if names_only:
        print(",".join(known_to_slurm(bad)))
        return 0
    for host, why in bad.items():
        print(f"{host}  {why}")
    print(f"{len(bad)} nodes are excluded" + (": doctor --excluded-nodes --forgive NODE forgets one" if bad else ""))
    return 0


def _show(checks: Sequence[Check], *, visible: bool = True) -> int:
    """Print the table; 1 when a check failed."""
    from segformer_spark.cluster.checks import failures, summary, table

    if visible:
        print("\n".join([*table(checks), summary(checks)]))
    return 1 if failures(checks) else 0
