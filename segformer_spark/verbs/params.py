"""`params`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.verbs.arguments import VARIANTS, Subparsers, add_verb, image_size, positive


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "params",
        "Parameters and multiply-adds of the variants, for any number of classes and size; downloads nothing.",
        "segformer-spark params --num-classes 150 --image-size 512 --json params.json --figure params.png",
        params,
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="(default: all)")
    parser.add_argument("--num-classes", type=positive, default=3, help="(default: %(default)s, as SPARK has)")
    parser.add_argument("--image-size", type=image_size, default=512, help="side in pixels (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="write the table as JSON, too")
    parser.add_argument("--figure", type=Path, default=None, help="draw it as PNG, too")


def params(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from segformer_spark.models.size import all_sizes, draw_sizes, size_table
    from segformer_spark.run.atomic import write_json

    sizes = all_sizes(arguments.num_classes, arguments.image_size, arguments.variants)
    print("\n".join(size_table(sizes)))
    if arguments.json is not None:
        write_json(arguments.json, [size.row() for size in sizes])
    if arguments.figure is not None:
        draw_sizes(sizes, arguments.figure)
    return 0
