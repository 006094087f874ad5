"""`replay`: one optimizer step of a run computed again."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformer_spark.exit_codes import ExitCode
from segformer_spark.verbs.arguments import Subparsers, add_verb, not_negative, positive
from segformer_spark.verbs.launch import joined

if TYPE_CHECKING:
    from segformer_spark.training.replay import Plan, Replay

_LAYERS_SHOWN = 8


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "replay",
        "Compute one optimizer step of a run again, from the nearest checkpoint before it: its images, loss, Dice and "
        "gradient norms, and whether they are what the run noted.",
        "segformer-spark replay runs/spark_b2_512 --step 1234",
        replay,
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--step", type=positive, required=True, help="from 1 on")
    parser.add_argument(
        "--rank", type=not_negative, default=None, help="show the images of this rank (default: of all)"
    )
    parser.add_argument("--output", type=Path, default=None, help="folder (default: replay/step-N in the run)")


def replay(arguments: argparse.Namespace) -> int:
    """Start the ranks, or be one of them."""
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.errors import UserError
    from segformer_spark.files.json_file import read_json_object
    from segformer_spark.run.console import logger, setup_logging
    from segformer_spark.run.directory import RunDirectory
    from segformer_spark.run.verb_process import run_ranks
    from segformer_spark.training.replay import plan_replay

    run = RunDirectory(arguments.run)
    hardware = run.load_config().config.hardware
    plan = plan_replay(run, arguments.step, read_json_object(run.params_json))
    if arguments.rank is not None and arguments.rank >= plan.world_size:
        raise UserError(f"--rank {arguments.rank}: the run had {plan.world_size} ranks at this step")
    launch = detect_launch(os.environ)
    if launch.world_size != plan.processes:
        if launch.world_size > 1:
            raise UserError(f"replay starts its {plan.processes} ranks itself: call it as one process")
        setup_logging()
        logger.info("%s", plan.describe())
        rank = [] if arguments.rank is None else ["--rank", str(arguments.rank)]
        output = [] if arguments.output is None else ["--output", str(arguments.output)]
        words = ["replay", str(run.path), "--step", str(arguments.step), *rank, *output]
        return run_ranks(words, plan.processes)
    output_folder = arguments.output or run.path / "replay" / f"step-{arguments.step}"
    with joined(hardware) as group:
        if plan.processes == 1:
            logger.info("%s", plan.describe())
        from segformer_spark.training.replay import replay as compute

        found = compute(plan, group, output_folder, arguments.rank)
        is_same = _report(plan, found, output_folder) if group.is_main else True
    return ExitCode.GOOD if is_same else ExitCode.FOUND_WRONG


def _report(plan: Plan, found: Replay, output: Path) -> bool:
    """Print and write what came out; whether it is what the run noted."""
    from segformer_spark.files.atomic import write_json

    lines, is_same = _comparison(plan, found)
    evidence = found.evidence
    print(f"step {plan.step}, epoch {found.epoch}, learning rate {found.lr:.6g}")
    parts = ", ".join(f"{name} {value:.6f}" for name, value in evidence.loss_parts.items())
    print(f"loss {found.loss!r}" + (f" ({parts})" if parts else ""))
    print(f"gradient norm {found.grad_norm!r}")
    for name, norm in sorted(evidence.grad_norms.items(), key=lambda item: -item[1])[:_LAYERS_SHOWN]:
        print(f"    {norm:12.6g}  {name}")
    if evidence.first_not_finite is not None:
        print(f"not finite first in the forward pass: {evidence.first_not_finite}")
    elif evidence.first_layer_not_finite is not None:
        print(f"not finite first in the backward pass: {evidence.first_layer_not_finite}")
    print("\n".join(lines))
    write_json(output / "replay.json", _record(plan, found))
    print(f"images and all numbers: {output}")
    return is_same


def _comparison(plan: Plan, found: Replay) -> tuple[list[str], bool]:
    from segformer_spark.training.replay import TOLERANCE

    if found.diverged is not None:
        return [f"the step is not finite: {found.diverged}"], True
    difference = found.relative_difference
    if difference is None or found.recorded is None:
        return ["the run noted nothing of this step"], True
    noted = f"the run noted loss {found.recorded[0]!r}, gradient norm {found.recorded[1]!r}"
    if not found.differing:
        return [f"{noted}: equal, as are all steps on the way"], True
    text = f"{noted}: relative difference {difference:.2g}"
    if plan.on_gpus:
        return [
            f"{text}. The run had GPUs, whose sums and whose random numbers (dropout, stochastic depth) are others"
        ], True
    if plan.played > 1:
        return [
            f"{text}, tolerance {TOLERANCE:g}: {plan.played} ranks were played by one process"
        ], difference <= TOLERANCE
    steps = ", ".join(map(str, found.differing[:5])) + (" ..." if len(found.differing) > 5 else "")
    return [f"{text}. Other than noted are steps {steps}: another machine, version or number of threads?"], False


def _record(plan: Plan, found: Replay) -> dict[str, Any]:
    return {
        "step": plan.step,
        "from_step": plan.from_step,
        "world_size": plan.world_size,
        "played_ranks": plan.played,
        "loss": _finite(found.loss),
        "grad_norm": _finite(found.grad_norm),
        "recorded": None if found.recorded is None else [_finite(value) for value in found.recorded],
        "steps_that_differ": found.differing,
        "relative_difference": found.relative_difference,
        "lr": found.lr,
        "diverged": found.diverged,
        "loss_parts": {name: _finite(value) for name, value in found.evidence.loss_parts.items()},
        "grad_norm_per_layer": {name: _finite(norm) for name, norm in found.evidence.grad_norms.items()},
        "first_not_finite": found.evidence.first_not_finite,
        "images": [
            {"file": one.file, "rank": one.rank, "loss": _finite(one.loss), "dice": one.dice} for one in found.images
        ],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not abs(value) < float("inf") else value
