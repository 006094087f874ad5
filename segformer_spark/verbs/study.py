"""`compare`, `ablate` and `study-demo`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.verbs.arguments import DEVICE_MODELS, Subparsers, add_from_env, add_set, add_verb, positive
from segformer_spark.verbs.launch import joined

if TYPE_CHECKING:
    from segformer_spark.config.study import Study
    from segformer_spark.study.execute import PlannedRun

_ACTIONS = ("run", "report", "list", "check")


def add(subparsers: Subparsers) -> None:
    """Declare the verbs."""
    parser = add_verb(
        subparsers,
        "compare",
        "Train models x data sets x recipes x seeds of a study file, and compare them.",
        "segformer-spark compare run configs/study/camvid.yaml --set data.root=/data/camvid",
        compare,
    )
    _add_common(parser)
    parser = add_verb(
        subparsers,
        "ablate",
        "Train the recipes of a study file with several seeds, and say what each changes against the first.",
        "segformer-spark ablate run configs/study/b_ablation.yaml --set data.root=/data/street_hazards",
        ablate,
    )
    _add_common(parser)
    parser = add_verb(
        subparsers,
        "study-demo",
        "All of the comparison study at toy size: sizes, comparison, ablation, anomalies, agreement, one report.",
        "segformer-spark study-demo --output studies/demo",
        study_demo,
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("data/demo_streets"), help="rendered set (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("studies/demo"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--num-train", type=positive, default=64, help="rendered training images (default: %(default)s)"
    )
    parser.add_argument(
        "--num-val", type=positive, default=20, help="rendered validation images (default: %(default)s)"
    )
    parser.add_argument("--num-test", type=positive, default=20, help="rendered test images (default: %(default)s)")
    parser.add_argument("--pairs", type=positive, default=24, help="synthetic image pairs (default: %(default)s)")
    _add_seeds(parser)
    add_set(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=_ACTIONS,
        help="run: train what is missing, one run after another, then report; report: evaluate and report what is "
        "finished; list: the runs; check: whether weights, data, sizes and batches of all runs are in order, which run "
        "does first",
    )
    parser.add_argument("file", type=Path, help="study file")
    parser.add_argument("--processes", type=positive, default=1, help="processes of each training (default: 1)")
    parser.add_argument(
        "--estimate", action="store_true", help="with list: add up the hours, spent and to come (default: off)"
    )
    parser.add_argument(
        "--device-model", choices=DEVICE_MODELS, default=None, help="GPU to estimate for (default: no estimate)"
    )
    parser.add_argument(
        "--budget", type=_hours, default=None, metavar="HOURS", help="GPU-hours to compare with, such as 50h or 2d"
    )
    parser.add_argument(
        "--num-images", type=positive, default=None, help="training images, where the data set is not here"
    )
    parser.add_argument("--output", type=Path, default=None, help="folder of the report (default: studies/<name>)")
    _add_seeds(parser)
    add_from_env(parser)
    add_set(parser)


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", nargs="+", type=int, default=(), help="of the study's, these only (default: all)")


def _hours(text: str) -> float:
    from segformer_spark.study.budget import read_budget

    try:
        return read_budget(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def compare(arguments: argparse.Namespace) -> int:
    """Run or report a comparison."""
    return _act(arguments, ablation=False)


def ablate(arguments: argparse.Namespace) -> int:
    """Run or report an ablation."""
    return _act(arguments, ablation=True)


def _act(arguments: argparse.Namespace, *, ablation: bool) -> int:
    from segformer_spark.config.study import read_study
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.errors import UserError
    from segformer_spark.run.console import setup_logging
    from segformer_spark.study.execute import plan_runs, train_missing

    setup_logging()
    if detect_launch(os.environ).world_size > 1:
        raise UserError("studies run in one process and start others themselves: without torchrun, srun --ntasks=1")
    study = read_study(arguments.file)
    if ablation:
        from segformer_spark.study.ablation import check_ablation

        check_ablation(study)
    planned = plan_runs(study, arguments.overrides, os.environ if arguments.from_env else None, arguments.seeds)
    if arguments.estimate and arguments.action != "list":
        raise UserError(f"--estimate goes with list, the action is {arguments.action}")
    for name in ("device_model", "budget", "num_images"):
        if getattr(arguments, name) is not None and not arguments.estimate:
            raise UserError(f"--{name.replace('_', '-')} goes with list --estimate")
    if arguments.action == "list" and arguments.estimate:
        _estimate(planned, arguments)
        return 0
    if arguments.action == "list":
        _list(study, planned, ablation=ablation)
        return 0
    if arguments.action in ("run", "check"):
        from segformer_spark.study.preparation import check_runs, claim

        check_runs(study, planned, arguments.processes)
        if arguments.action == "check":
            print(f"{len(planned)} runs: weights, data, sizes and batches are in order")
            return 0
        claim(study, study.folder)
        train_missing(study, planned, _train_options(arguments), arguments.processes)
    folder = arguments.output or study.folder
    with joined(planned[0].resolved.config.hardware) as group:
        from segformer_spark.study.collect import collect
        from segformer_spark.study.report import write_ablation, write_comparison

        results = collect(study, planned, group)
        rows = (write_ablation if ablation else write_comparison)(study, results, group, folder)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if value not in (None, "")))
    print(f"tables, figures, report.html: {folder}")
    return 0


def _train_options(arguments: argparse.Namespace) -> list[str]:
    from segformer_spark.run.verb_process import set_options

    return [*set_options(arguments.overrides), *(["--from-env"] if arguments.from_env else [])]


def _list(study: Study, planned: list[PlannedRun], *, ablation: bool) -> None:
    missing = [one.index for one in planned if not one.is_finished]
    for one in planned:
        print(f"{one.index:>4}  {one.state:<14}  {one.run.name}")
    print(f"{len(planned)} runs, {len(missing)} to train; as an array, one GPU each (data.root as DATA_ROOT):")
    array = f"--array={','.join(str(index) for index in missing)} --ntasks-per-node=1 --gpus-per-node=1"
    if missing:
        print(f"  RESUME=auto sbatch {array} slurm/segformer_sweep.sh {study.path}")
    print(f"  {'ABLATION=1 ' if ablation else ''}sbatch slurm/segformer_study.sh {study.path}")


def _estimate(planned: list[PlannedRun], arguments: argparse.Namespace) -> None:
    from segformer_spark.bench.roofline import device_models
    from segformer_spark.study.budget import describe_hours, run_hours

    device = None if arguments.device_model is None else device_models.DEVICE_MODELS[arguments.device_model]
    for line in describe_hours(run_hours(planned, device, arguments.num_images), arguments.budget):
        print(line)


def study_demo(arguments: argparse.Namespace) -> int:
    """Run the toy study."""
    from segformer_spark.run.console import setup_logging
    from segformer_spark.study.demo import StudyDemoOptions, run_study_demo

    setup_logging()
    path = run_study_demo(
        StudyDemoOptions(
            data_root=arguments.data_root,
            output=arguments.output,
            num_images=(arguments.num_train, arguments.num_val, arguments.num_test),
            num_pairs=arguments.pairs,
            seeds=tuple(arguments.seeds),
            overrides=tuple(arguments.overrides),
        )
    )
    print(f"report: {path}")
    return 0
