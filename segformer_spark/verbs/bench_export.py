"""`bench export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import IMAGE_SIZE_HELP, Subparsers, add_verb, image_size, positive


def add(actions: Subparsers) -> None:
    """Declare the action of `bench`."""
    parser = add_verb(
        actions,
        "export",
        "Compare ONNX files on onnxruntime's CPU provider: transformers' export, the merged head's in fp32 and int8.",
        "segformer-spark bench export --variants b0 b2 --rounds 20",
        bench_export,
    )
    parser.add_argument("--variants", nargs="+", default=["b0"], metavar="VARIANT", help="(default: b0)")
    parser.add_argument("--num-classes", type=positive, default=19, help="(default: %(default)s)")
    parser.add_argument("--image-size", type=image_size, default="512", help=f"{IMAGE_SIZE_HELP} (default: 512)")
    parser.add_argument("--rounds", type=positive, default=10, help="(default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=2, help="of onnxruntime (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="write everything that was measured")


def bench_export(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from segformer_spark.bench.exports import as_json, bench_exports, table
    from segformer_spark.config.variants import VARIANTS
    from segformer_spark.errors import UserError
    from segformer_spark.files.atomic import write_json
    from segformer_spark.run.console import setup_logging

    unknown = [name for name in arguments.variants if name not in VARIANTS]
    if unknown:
        raise UserError(f"--variants {', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    setup_logging()
    found = {}
    for variant in arguments.variants:
        rows = bench_exports(variant, arguments.num_classes, arguments.image_size, arguments.rounds, arguments.threads)
        print("\n".join(table(variant, arguments.image_size, arguments.threads, rows)), flush=True)
        found[variant] = as_json(rows)
    print(f"{arguments.rounds} interleaved rounds; speedup over transformers' export, median and range")
    if arguments.json is not None:
        write_json(arguments.json, found)
    return 0
