"""`params`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.config.variants import VARIANTS
from segformer_spark.verbs.arguments import IMAGE_SIZE_HELP, Subparsers, add_verb, image_size, positive


def add(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "params",
        "Parameters and multiply-adds of the models, for any number of classes and size; downloads nothing.",
        "segformer-spark params --models b0 b2 unet deeplabv3plus:resnet101 --num-classes 21 --json params.json",
        params,
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=None, help="these sizes of SegFormer alone")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME[:ENCODER]",
        default=None,
        help="b0 to b5, or names of models.registry with an encoder (default: all, with their first encoder)",
    )
    parser.add_argument("--num-classes", type=positive, default=3, help="(default: %(default)s, as SPARK has)")
    parser.add_argument(
        "--image-size",
        type=image_size,
        default="512",
        metavar="PIXELS",
        help=f"{IMAGE_SIZE_HELP} (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, default=None, help="write the table as JSON, too")
    parser.add_argument("--figure", type=Path, default=None, help="draw it as PNG, too")


def params(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from segformer_spark.config.schema import ModelConfig
    from segformer_spark.errors import UserError
    from segformer_spark.models.registry import MODELS, find_architecture

    if arguments.models and arguments.variants:
        raise UserError("params: --models names SegFormer's sizes too (b0); leave --variants out")
    others = [] if arguments.variants is not None else [name for name in MODELS if name != "segformer"]
    wanted = arguments.models or [*(arguments.variants or VARIANTS), *others]
    configs = []
    for item in wanted:
        name, _, encoder = item.partition(":")
        chosen = {"variant": name} if name in VARIANTS else {"name": name}
        chosen |= {"encoder": encoder} if encoder else {}
        config = ModelConfig(pretrained="none", **chosen)
        find_architecture(config)
        configs.append(config)

    from segformer_spark.models.size import size_of
    from segformer_spark.models.size_report import draw_sizes, size_table

    sizes = [size_of(config, arguments.num_classes, arguments.image_size) for config in configs]
    print("\n".join(size_table(sizes)))
    if arguments.json is not None:
        from segformer_spark.files.atomic import write_json

        write_json(arguments.json, [size.row() for size in sizes])
    if arguments.figure is not None:
        draw_sizes(sizes, arguments.figure)
    return 0
