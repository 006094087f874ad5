"""`bench`: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.config.variants import VARIANTS
from segformer_spark.verbs import bench_export
from segformer_spark.verbs.arguments import (
    DEVICE_MODELS,
    IMAGE_SIZE_HELP,
    Subparsers,
    add_actions,
    add_config,
    add_from_env,
    add_verb,
    image_size,
    positive,
    positive_number,
)
from segformer_spark.verbs.launch import joined, resolve

if TYPE_CHECKING:
    from segformer_spark.bench.interleaved import Benchmark
    from segformer_spark.bench.workload import ModelSpec
    from segformer_spark.config.schema import Config

_ROUNDS = 5


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its actions."""
    actions = add_actions(subparsers, "bench", "Measure this package beside baselines, or its scaling.")
    for kind, text in (("train", "Compare a training step"), ("infer", "Compare inference")):
        parser = add_verb(
            actions,
            kind,
            f"{text} with transformers and segmentation_models_pytorch.",
            f"segformer-spark bench {kind} --variant b2",
            train if kind == "train" else infer,
        )
        _add_model(parser, batch=2 if kind == "train" else 1)
        if kind == "train":
            parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2), default=0, help="(default: %(default)s)")
            parser.add_argument("--recompute", action="store_true", help="this package with activation checkpointing")
            parser.add_argument(
                "--compile",
                nargs="?",
                choices=("off", "on", "auto"),
                default="off",
                const="on",
                help="all with torch.compile; auto: this package block by block (default: %(default)s)",
            )
            parser.add_argument(
                "--cuda-graphs",
                choices=("off", "auto"),
                default="off",
                help="this package with CUDA graphs (default: %(default)s)",
            )
        _add_common(parser)
    bench_export.add(actions)
    parser = add_verb(
        actions,
        "zero",
        "Compare ZeRO stages 1 and 2 with stage 0 on ranks of this machine.",
        "segformer-spark bench zero --variant b2 --ranks 2",
        zero,
    )
    _add_model(parser, batch=2)
    parser.add_argument("--ranks", type=positive, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--deepspeed",
        type=Path,
        action="append",
        default=[],
        metavar="JSON",
        help="one more DeepSpeed file; may be repeated",
    )
    _add_common(parser)
    parser = add_verb(
        actions,
        "loss",
        "Compare CE + Dice of quarter-size logits with full-size logits.",
        "segformer-spark bench loss --classes 150",
        loss,
    )
    _add_size(parser, size="512", batch=2, classes=19)
    _add_common(parser)
    parser = add_verb(
        actions,
        "loader",
        "Compare decoding and light augmentation with the original implementation.",
        "segformer-spark bench loader",
        loader,
    )
    parser.add_argument("--native", type=positive, default=1024, help="side of the files (default: %(default)s)")
    parser.add_argument(
        "--image-size",
        type=image_size,
        default="512",
        metavar="PIXELS",
        help=f"of the samples, {IMAGE_SIZE_HELP} (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=("files", "reduced", "cache"),
        default="files",
        help="what this package reads: files, files at a reduced scale, a cache (default: %(default)s)",
    )
    parser.add_argument("--images", type=positive, default=32, help="per call (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("data/bench"), help="for the set (default: %(default)s)")
    _add_common(parser)
    parser = add_verb(
        actions,
        "evaluate",
        "Compare the metric with a mean IoU in NumPy.",
        "segformer-spark bench evaluate",
        evaluate,
    )
    _add_size(parser, size="1024", batch=4, classes=3)
    _add_common(parser)
    _add_roofline(actions)
    _add_consensus(actions)
    _add_scaling(actions)


def _add_roofline(actions: Subparsers) -> None:
    parser = add_verb(
        actions,
        "roofline",
        "Estimate a training step on a GPU that is not here, operation by operation, beside transformers'.",
        "segformer-spark bench roofline --variant b2 --batch 8 --precision bf16 --device-model a100-40",
        roofline,
    )
    parser.add_argument("--variant", choices=list(VARIANTS), default="b2", help="(default: %(default)s)")
    _add_size(parser, size="512", batch=8, classes=3)
    parser.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="bf16", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--device-model",
        choices=DEVICE_MODELS,
        default="a100-40",
        help="whose data sheet to take (default: %(default)s)",
    )
    parser.add_argument(
        "--kernels",
        choices=("plain", "gpu"),
        default="gpu",
        help="this package's arithmetic, as hardware.kernels names it (default: %(default)s)",
    )
    parser.add_argument(
        "--compile",
        choices=("off", "auto"),
        default="off",
        help="auto: with this package's step compiled block by block, as Inductor plans it, which takes it half "
        "a minute or more; not with --infer (default: %(default)s)",
    )
    parser.add_argument("--infer", action="store_true", help="inference to class ids at twice the size of the images")
    parser.add_argument("--top", type=positive, default=15, help="operations to list (default: %(default)s)")
    parser.add_argument("--host-time", action="store_true", help="measure what the host does, too (half a minute)")
    parser.add_argument("--json", type=Path, default=None, help="write everything that was counted to this file")


def _add_consensus(actions: Subparsers) -> None:
    parser = add_verb(
        actions,
        "consensus",
        "Measure what the consensus of the ranks before every step costs, with a clock in place of the GPU.",
        "segformer-spark bench consensus --ranks 2 4 8 --launch-ms 13 --compute-ms 16",
        consensus,
    )
    parser.add_argument(
        "--ranks", type=positive, nargs="+", default=[2, 4, 8, 16, 32], help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--launch-ms", type=positive_number, default=13.0, help="of the host, per step (default: %(default)s)"
    )
    parser.add_argument(
        "--compute-ms", type=positive_number, default=16.0, help="of the device, per step (default: %(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=100, help="per order (default: %(default)s)")


def _add_size(parser: argparse.ArgumentParser, *, size: str, batch: int, classes: int) -> None:
    parser.add_argument(
        "--image-size",
        type=image_size,
        default=size,
        metavar="PIXELS",
        help=f"{IMAGE_SIZE_HELP} (default: %(default)s)",
    )
    parser.add_argument("--batch", type=positive, default=batch, help="images at a time (default: %(default)s)")
    parser.add_argument("--classes", type=positive, default=classes, help="(default: %(default)s)")


def _add_model(parser: argparse.ArgumentParser, *, batch: int) -> None:
    parser.add_argument("--variant", choices=list(VARIANTS), default="b2", help="(default: %(default)s)")
    _add_size(parser, size="512", batch=batch, classes=3)
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        default="fp32",
        help="of all implementations (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=_ROUNDS, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="leave an implementation out")
    parser.add_argument("--json", type=Path, default=None, help="write everything that was measured to this file")


def _add_scaling(actions: Subparsers) -> None:
    parser = add_verb(
        actions,
        "scaling",
        "Measure training on the ranks that srun or torchrun started, and add a line to a CSV; or plan from it.",
        "srun --nodes=2 python -m segformer_spark bench scaling --config configs/spark_b2.yaml --csv scaling.csv",
        scaling,
    )
    add_config(parser)
    add_from_env(parser)
    parser.add_argument("--steps", type=positive, default=20, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--strong",
        action="store_true",
        help="keep the configured global batch, so that each rank has less to do (default: keep the micro-batch)",
    )
    parser.add_argument("--csv", type=Path, default=Path("scaling.csv"), help="(default: %(default)s)")
    plan = parser.add_argument_group("look ahead", "from the table of measured rows; nothing is run")
    plan.add_argument("--plan", action="store_true", help="say what 1, 2, 4 ... nodes would give")
    plan.add_argument("--nodes", type=positive, default=64, help="up to so many (default: %(default)s)")
    plan.add_argument("--bandwidth", type=positive_number, default=None, metavar="GB/S", help="of a rank")
    plan.add_argument(
        "--latency", type=positive_number, default=5.0, metavar="US", help="with --bandwidth (default: %(default)s)"
    )


def train(arguments: argparse.Namespace) -> int:
    """A training step."""
    return _model("train", arguments)


def infer(arguments: argparse.Namespace) -> int:
    """Inference."""
    return _model("infer", arguments)


def _model(kind: str, arguments: argparse.Namespace) -> int:
    from segformer_spark.bench.benchmarks import model_benchmark

    return _run(model_benchmark(_model_spec(kind, arguments)), arguments)


def _model_spec(kind: str, arguments: argparse.Namespace) -> ModelSpec:
    from segformer_spark.bench.workload import ModelSpec
    from segformer_spark.distributed.devices import choose_device

    given = {name: getattr(arguments, name) for name in ModelSpec.model_fields if name in arguments}
    return ModelSpec(**{**given, "kind": kind, "device": choose_device(arguments.device, 0).type, "deepspeed": None})


def zero(arguments: argparse.Namespace) -> int:
    """ZeRO stages."""
    from segformer_spark.bench.benchmarks import zero_benchmark

    return _run(zero_benchmark(_model_spec("train", arguments), arguments.deepspeed), arguments)


def loss(arguments: argparse.Namespace) -> int:
    """The loss."""
    from segformer_spark.bench.benchmarks import loss_benchmark

    return _run(loss_benchmark(arguments.image_size, arguments.batch, arguments.classes), arguments)


def loader(arguments: argparse.Namespace) -> int:
    """The loader."""
    from segformer_spark.bench.benchmarks import loader_benchmark

    options = (arguments.native, arguments.image_size, arguments.images, arguments.source)
    return _run(loader_benchmark(arguments.folder, *options), arguments)


def evaluate(arguments: argparse.Namespace) -> int:
    """The metric."""
    from segformer_spark.bench.benchmarks import metric_benchmark

    return _run(metric_benchmark(arguments.image_size, arguments.batch, arguments.classes), arguments)


def _run(benchmark: Benchmark, arguments: argparse.Namespace) -> int:
    from segformer_spark.bench.report import run_benchmark

    for line in run_benchmark(benchmark, arguments.rounds, arguments.exclude, arguments.json):
        print(line, flush=True)
    return 0


def roofline(arguments: argparse.Namespace) -> int:
    """The estimate."""
    from segformer_spark.bench.roofline import device_models
    from segformer_spark.bench.roofline.report import estimate
    from segformer_spark.bench.roofline.steps import StepSpec

    given = {name: getattr(arguments, name) for name in StepSpec.__dataclass_fields__}
    device = device_models.DEVICE_MODELS[arguments.device_model]
    options = {"infer": arguments.infer, "top": arguments.top, "host": arguments.host_time, "output": arguments.json}
    for line in estimate(StepSpec(**given), device, **options):
        print(line, flush=True)
    return 0


def consensus(arguments: argparse.Namespace) -> int:
    """The consensus of ranks."""
    from segformer_spark.bench.consensus import StandIn, describe_consensus, measure_consensus

    stand_in = StandIn(arguments.launch_ms / 1000, arguments.compute_ms / 1000)
    for line in describe_consensus(measure_consensus(arguments.ranks, stand_in, arguments.steps), stand_in):
        print(line, flush=True)
    return 0


def scaling(arguments: argparse.Namespace) -> int:
    """Measure, and add a line to the table; or plan."""
    resolved = resolve(arguments)
    if arguments.plan:
        return _plan(arguments, resolved.config)
    with joined(resolved.config.hardware) as group:
        from segformer_spark.bench.scaling import add_row, describe, measure_throughput

        config = resolved.config
        if not arguments.strong:
            weak = {"global_batch_size": None, "accumulation_steps": None}
            config = config.model_copy(update={"training": config.training.model_copy(update=weak)})
        row = measure_throughput(config, group, arguments.steps)
        row = group.on_main(lambda: add_row(arguments.csv, row, strong=arguments.strong))
        if group.is_main:
            print(describe(row))
            print(f"table: {arguments.csv}")
    return 0


def _plan(arguments: argparse.Namespace, config: Config) -> int:
    from segformer_spark.bench.interconnect import Interconnect
    from segformer_spark.bench.scaling_plan import describe_plan, make_plan, write_plan

    interconnect = None
    if arguments.bandwidth is not None:
        interconnect = Interconnect(arguments.latency / 1e6, arguments.bandwidth * 1e9)
    plan = make_plan(arguments.csv, config, nodes=arguments.nodes, interconnect=interconnect, strong=arguments.strong)
    for line in describe_plan(plan):
        print(line)
    for path in write_plan(plan, arguments.csv):
        print(f"wrote: {path}")
    return 0
