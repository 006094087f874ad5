"""The command line: which verbs and options there are. What they do stands in verbs.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segformer_spark import __version__, verbs
from segformer_spark.errors import UserError

Verb = Callable[[argparse.Namespace], int]
_Subparsers = Any  # argparse has no public name for it

_PRECISIONS = ("fp32", "bf16", "fp16")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `segformer-spark` and `python -m segformer_spark`; leaves with the verb's status."""
    arguments = build_parser().parse_args(argv)
    verb: Verb = arguments.verb
    try:
        status = verb(arguments)
    except UserError as error:
        _print_error(error)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    sys.exit(status)


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="segformer-spark",
        description="Train, evaluate and submit SegFormer on SPARK, on one process or many nodes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (_add_demo, _add_data, _add_weights, _add_train, _add_evaluate, _add_submit):
        add(subparsers)
    return parser


def _verb(subparsers: _Subparsers, name: str, summary: str, example: str, run: Verb) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def _add_demo(subparsers: _Subparsers) -> None:
    parser = _verb(
        subparsers,
        "demo",
        "Render a small set, train, evaluate and write a submission, on this machine's CPU.",
        "segformer-spark demo",
        verbs.demo,
    )
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: configs/demo.yaml)")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data/demo"), help="folder of the rendered set (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="training processes (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=600, help="rendered training images (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=100, help="rendered validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=20, help="rendered test images (default: %(default)s)")
    _add_set(parser)


def _add_data(subparsers: _Subparsers) -> None:
    data = subparsers.add_parser("data", help="Prepare data sets.", description="Prepare data sets.")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    parser = _verb(
        actions,
        "make-demo",
        "Render a SPARK-shaped data set: images, masks, CSVs and a test folder.",
        "segformer-spark data make-demo --root data/demo --num-train 600 --num-val 100 --num-test 20 --size 256",
        verbs.make_demo,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder to create")
    parser.add_argument("--num-train", type=_positive, default=600, help="training images (default: %(default)s)")
    parser.add_argument("--num-val", type=_positive, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=_positive, default=20, help="test images (default: %(default)s)")
    parser.add_argument("--size", type=_positive, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument(
        "--seed", type=_not_negative, default=0, help="the same seed gives the same bytes (default: %(default)s)"
    )


def _add_weights(subparsers: _Subparsers) -> None:
    weights = subparsers.add_parser("weights", help="Pretrained weights.", description="Pretrained weights.")
    actions = weights.add_subparsers(title="actions", required=True, metavar="ACTION")
    parser = _verb(
        actions,
        "fetch",
        "Download pretrained weights; run this where there is internet, before submitting jobs.",
        "segformer-spark weights fetch --variant b2 --source ade20k",
        verbs.fetch,
    )
    parser.add_argument(
        "--variant", choices=("b0", "b1", "b2", "b3", "b4", "b5"), default="b2", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--source", choices=("ade20k", "cityscapes", "imagenet"), default="ade20k", help="(default: %(default)s)"
    )
    parser.add_argument("--all", action="store_true", help="every variant and source (about 3.5 GB)")
    parser.add_argument(
        "--weights-dir", type=Path, default=Path("weights"), help="folder to fill (default: %(default)s)"
    )


def _add_train(subparsers: _Subparsers) -> None:
    parser = _verb(
        subparsers,
        "train",
        "Train a model; start it with torchrun or srun for several processes.",
        "torchrun --nproc-per-node 4 -m segformer_spark train --config configs/spark_b2.yaml --set data.root=DIR",
        verbs.train,
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file (default: the schema's defaults)")
    _add_set(parser)
    parser.add_argument(
        "--from-env", action="store_true", help="read overrides from the environment, as the batch scripts do"
    )
    parser.add_argument(
        "--resume", metavar="auto|CHECKPOINT", default=None, help="continue from the newest or the given checkpoint"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run directory")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, batch arithmetic and steps; touch nothing"
    )
    parser.add_argument(
        "--world-size", type=_positive, default=None, help="with --dry-run: number of processes to plan for"
    )


def _add_evaluate(subparsers: _Subparsers) -> None:
    parser = _verb(
        subparsers,
        "evaluate",
        "Evaluate a run's model at native resolution.",
        "segformer-spark evaluate runs/spark_b2_512 --tta flips",
        verbs.evaluate,
    )
    parser.add_argument("run", type=Path, nargs="?", default=None, help="run directory, or an exported model in it")
    parser.add_argument("--model", type=Path, default=None, help="exported model folder (default: the run's best/)")
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: the run's config.yaml)")
    parser.add_argument("--split", default=None, help="split of the data set (default: the validation split)")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for results (default: <run>/evaluation/<split>)"
    )
    parser.add_argument(
        "--worst", type=int, default=12, help="how many of the worst images to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--from-env", action="store_true", help="read MODEL_PATH, SPLIT, OUTPUT, TTA and overrides from the environment"
    )
    _add_prediction(parser)
    _add_set(parser)


def _add_submit(subparsers: _Subparsers) -> None:
    parser = _verb(
        subparsers,
        "submit",
        "Predict the test images and write the submission zip; continues where it was cut off.",
        "segformer-spark submit --model runs/spark_b2_512/best --images /scratch/spark/stream-1-test --tta flips",
        verbs.submit,
    )
    parser.add_argument("--model", type=Path, default=None, help="exported model folder or run directory")
    parser.add_argument("--images", type=Path, default=None, help="folder of test images")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the predictions (default: <run>/submission)"
    )
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes per rank (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace predictions of another model or other settings"
    )
    parser.add_argument(
        "--from-env", action="store_true", help="read MODEL_PATH, TEST_IMAGES, OUTPUT and TTA from the environment"
    )
    _add_prediction(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override, for example training.epochs=20",
    )


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tta", choices=verbs.TTA, default=None, help="test-time augmentation (default: none)")
    parser.add_argument(
        "--precision", choices=_PRECISIONS, default=None, help="arithmetic of the model (default: fp32)"
    )
    parser.add_argument("--batch-size", type=_positive, default=None, help="images per process at a time (default: 8)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="(default: auto)")


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def _print_error(error: UserError) -> None:
    """Rank 0 speaks for errors that all ranks share; an error of one rank alone names it."""
    from segformer_spark.distributed.environment import detect_launch

    try:
        launch = detect_launch(os.environ)
    except UserError:
        launch = None
    if launch is None or launch.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif not getattr(error, "shared", False):
        import socket

        print(f"error on rank {launch.rank} ({socket.gethostname()}): {error}", file=sys.stderr, flush=True)
