"""The command line. Heavy imports stand inside the verbs, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark import __version__
from segformer_spark.errors import UserError

if TYPE_CHECKING:
    from segformer_spark.config.load import ResolvedConfig
    from segformer_spark.config.schema import HardwareConfig
    from segformer_spark.distributed.process_group import Group

Verb = Callable[[argparse.Namespace], int]

_TTA = ("none", "hflip", "flips")
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
        prog="segformer-spark", description="Train, evaluate and submit SegFormer on SPARK, on one process or many nodes."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_demo(verbs)
    _add_data(verbs)
    _add_weights(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_submit(verbs)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str, run: Verb
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def _add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "demo", "Render a small set, train, evaluate and write a submission, on this machine's CPU.",
        "segformer-spark demo", _run_demo,
    )  # fmt: skip
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: configs/demo.yaml)")
    parser.add_argument("--data-root", type=Path, default=Path("data/demo"), help="folder of the rendered set (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="training processes (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=600, help="rendered training images (default: %(default)s)")
    parser.add_argument("--num-val", type=int, default=100, help="rendered validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=20, help="rendered test images (default: %(default)s)")
    _add_set(parser)


def _add_data(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = verbs.add_parser("data", help="Prepare data sets.", description="Prepare data sets.")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    parser = _verb(
        actions, "make-demo", "Render a SPARK-shaped data set: images, masks, CSVs and a test folder.",
        "segformer-spark data make-demo --root data/demo --num-train 600 --num-val 100 --num-test 20 --size 256 --seed 0",
        _run_make_demo,
    )  # fmt: skip
    parser.add_argument("--root", type=Path, required=True, help="folder to create")
    parser.add_argument("--num-train", type=_positive, default=600, help="training images (default: %(default)s)")
    parser.add_argument("--num-val", type=_positive, default=100, help="validation images (default: %(default)s)")
    parser.add_argument("--num-test", type=_positive, default=20, help="test images (default: %(default)s)")
    parser.add_argument("--size", type=_positive, default=256, help="side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: %(default)s)")


def _add_weights(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    weights = verbs.add_parser("weights", help="Pretrained weights.", description="Pretrained weights.")
    actions = weights.add_subparsers(title="actions", required=True, metavar="ACTION")
    parser = _verb(
        actions, "fetch", "Download pretrained weights; run this where there is internet, before submitting jobs.",
        "segformer-spark weights fetch --variant b2 --source ade20k", _run_fetch,
    )  # fmt: skip
    parser.add_argument("--variant", choices=("b0", "b1", "b2", "b3", "b4", "b5"), default="b2", help="(default: %(default)s)")
    parser.add_argument("--source", choices=("ade20k", "cityscapes", "imagenet"), default="ade20k", help="(default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="every variant and source (about 3.5 GB)")
    parser.add_argument("--weights-dir", type=Path, default=Path("weights"), help="folder to fill (default: %(default)s)")


def _add_train(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "train", "Train a model; start it with torchrun or srun for several processes.",
        "torchrun --nproc-per-node 4 -m segformer_spark train --config configs/spark_b2.yaml --set data.root=/scratch/spark",
        _run_train,
    )  # fmt: skip
    parser.add_argument("--config", type=Path, default=None, help="YAML file (default: the schema's defaults)")
    _add_set(parser)
    parser.add_argument("--from-env", action="store_true", help="read overrides from the environment, as the batch scripts do")
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", default=None, help="continue from the newest or the given checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run directory")
    parser.add_argument("--dry-run", action="store_true", help="print configuration, batch arithmetic and steps; touch nothing")
    parser.add_argument("--world-size", type=_positive, default=None, help="with --dry-run: number of processes to plan for")


def _add_evaluate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "evaluate", "Evaluate a run's model at native resolution.",
        "segformer-spark evaluate runs/spark_b2_512 --tta flips", _run_evaluate,
    )  # fmt: skip
    parser.add_argument("run", type=Path, nargs="?", default=None, help="run directory, or an exported model in it")
    parser.add_argument("--model", type=Path, default=None, help="exported model folder (default: the run's best/)")
    parser.add_argument("--config", type=Path, default=None, help="configuration (default: the run's config.yaml)")
    parser.add_argument("--split", default=None, help="split of the data set (default: the validation split)")
    parser.add_argument("--output", type=Path, default=None, help="folder for results (default: <run>/evaluation/<split>)")
    parser.add_argument("--worst", type=int, default=12, help="how many of the worst images to draw (default: %(default)s)")
    parser.add_argument("--from-env", action="store_true", help="read MODEL_PATH, SPLIT, OUTPUT, TTA and overrides from the environment")
    _add_prediction(parser)
    _add_set(parser)


def _add_submit(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs, "submit", "Predict the test images and write the submission zip; continues where it was cut off.",
        "segformer-spark submit --model runs/spark_b2_512/best --images /scratch/spark/stream-1-test --tta flips", _run_submit,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, default=None, help="exported model folder or run directory")
    parser.add_argument("--images", type=Path, default=None, help="folder of test images")
    parser.add_argument("--output", type=Path, default=None, help="folder for the predictions (default: <run>/submission)")
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes per rank (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace predictions of another model or other settings")
    parser.add_argument("--from-env", action="store_true", help="read MODEL_PATH, TEST_IMAGES, OUTPUT and TTA from the environment")
    _add_prediction(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override, for example training.epochs=20")


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tta", choices=_TTA, default=None, help="test-time augmentation (default: none)")
    parser.add_argument("--precision", choices=_PRECISIONS, default="fp32", help="arithmetic of the model (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=4, help="images per process at a time (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


@contextmanager
def _joined(hardware: HardwareConfig) -> Iterator[Group]:
    """The ranks that the launcher started, with logging and threads set up."""
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.distributed.process_group import choose_device, process_group, set_threads
    from segformer_spark.run.console import setup_logging

    launch = detect_launch(os.environ)
    setup_logging(launch.rank, launch.world_size)
    device = choose_device(hardware.device, launch.local_rank)
    set_threads(hardware.threads, launch.local_world_size)
    with process_group(launch, device, hardware.timeout_minutes) as group:
        yield group


def _run_demo(arguments: argparse.Namespace) -> int:
    from segformer_spark.demo import DemoOptions, run_demo
    from segformer_spark.run.console import setup_logging

    setup_logging()
    run_demo(
        DemoOptions(
            config=arguments.config,
            data_root=arguments.data_root,
            processes=arguments.processes,
            num_images=(arguments.num_train, arguments.num_val, arguments.num_test),
            overrides=tuple(arguments.overrides),
        )
    )
    return 0


def _run_make_demo(arguments: argparse.Namespace) -> int:
    from segformer_spark.data.demo.write import write_demo_set
    from segformer_spark.run.console import logger, setup_logging

    setup_logging()

    def say(split: str, done: int, total: int) -> None:
        if done == total:
            logger.info("rendered %d %s images", total, split)

    write_demo_set(
        arguments.root, num_train=arguments.num_train, num_val=arguments.num_val, num_test=arguments.num_test,
        size=arguments.size, seed=arguments.seed, progress=say,
    )  # fmt: skip
    return 0


def _run_fetch(arguments: argparse.Namespace) -> int:
    from segformer_spark.models.pretrained import SOURCES, fetch
    from segformer_spark.models.segformer import VARIANTS

    wanted = [(v, s) for s in SOURCES for v in VARIANTS] if arguments.all else [(arguments.variant, arguments.source)]
    for variant, source in wanted:
        fetched = fetch(variant, source, arguments.weights_dir)
        note = " (converted from .bin)" if fetched.converted else ""
        print(f"{fetched.folder}  sha256 {fetched.sha256}{note}")
    return 0


def _run_train(arguments: argparse.Namespace) -> int:
    from segformer_spark.config.load import load_config

    environment = os.environ if arguments.from_env else None
    resolved = load_config(arguments.config, overrides=arguments.overrides, environment=environment)
    resume = arguments.resume or (os.environ.get("RESUME") or None if arguments.from_env else None)
    if resume is not None and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    if arguments.dry_run:
        return _dry_run(resolved, arguments.world_size)
    # Before torch is imported, which reads it.
    from segformer_spark.training.stop import EXIT_STOPPED, catch_signals

    with catch_signals() as stop, _joined(resolved.config.hardware) as group:
        from segformer_spark.training.loop import Outcome
        from segformer_spark.training.train import TrainOptions, train

        _, outcome = train(resolved, TrainOptions(resume, arguments.overwrite), group, stop)
    return EXIT_STOPPED if outcome is Outcome.STOPPED else 0


def _dry_run(resolved: ResolvedConfig, world_size: int | None) -> int:
    from segformer_spark.distributed.environment import detect_launch
    from segformer_spark.training.dry_run import describe

    world = world_size or detect_launch(os.environ).world_size
    for line in describe(resolved, world):
        print(line)
    return 0


def _run_evaluate(arguments: argparse.Namespace) -> int:
    from segformer_spark.config.load import load_config
    from segformer_spark.run.directory import locate_model

    variables = os.environ if arguments.from_env else {}
    given = arguments.model or arguments.run or variables.get("MODEL_PATH")
    if given is None:
        raise UserError("evaluate: which model? Give a run directory, as in: segformer-spark evaluate runs/NAME")
    model, run = locate_model(Path(given))
    run = arguments.run if arguments.run is not None and (arguments.run / "config.yaml").is_file() else run
    config_file = arguments.config or (run / "config.yaml" if run is not None else None)
    if config_file is None:
        raise UserError(f"{model} does not lie in a run directory: give --config")
    resolved = load_config(config_file, overrides=arguments.overrides, environment=os.environ if arguments.from_env else None)
    split = arguments.split or variables.get("SPLIT") or resolved.config.data.val_split
    output = arguments.output or (Path(variables["OUTPUT"]) if variables.get("OUTPUT") else None)
    if output is None and run is None:
        raise UserError(f"{model} does not lie in a run directory: give --output")
    with _joined(resolved.config.hardware.model_copy(update={"device": arguments.device})) as group:
        from segformer_spark.evaluation.evaluate import EvaluateOptions, evaluate

        options = EvaluateOptions(
            model=model,
            split=split,
            output=output or Path(str(run)) / "evaluation" / split,
            num_worst=arguments.worst,
            tta=_tta(arguments, variables),
            precision=arguments.precision,
            batch_size=arguments.batch_size,
        )
        evaluate(resolved, options, group)
    return 0


def _run_submit(arguments: argparse.Namespace) -> int:
    from segformer_spark.config.schema import HardwareConfig
    from segformer_spark.run.directory import locate_model

    variables = os.environ if arguments.from_env else {}
    given, images = arguments.model or variables.get("MODEL_PATH"), arguments.images or variables.get("TEST_IMAGES")
    if given is None or images is None:
        raise UserError("submit: give --model and --images, as in: segformer-spark submit --model runs/NAME/best --images DIR")
    model, run = locate_model(Path(given))
    output = arguments.output or variables.get("OUTPUT") or (run / "submission" if run is not None else None)
    if output is None:
        raise UserError(f"{model} does not lie in a run directory: give --output")
    with _joined(HardwareConfig(device=arguments.device)) as group:
        from segformer_spark.submission.submit import SubmitOptions, submit

        options = SubmitOptions(
            model=model,
            images=Path(images),
            output=Path(output),
            tta=_tta(arguments, variables),
            precision=arguments.precision,
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            overwrite=arguments.overwrite,
        )
        submit(options, group)
    return 0


def _tta(arguments: argparse.Namespace, variables: object) -> str:
    value: str = arguments.tta or (variables.get("TTA") if isinstance(variables, os._Environ) else None) or "none"
    if value not in _TTA:
        raise UserError(f"TTA={value}: choose one of {', '.join(_TTA)}")
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
