"""`data init`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from segformer_spark.verbs.arguments import ORIENTATIONS, Subparsers, add_verb, not_negative, positive, share


def add(actions: Subparsers) -> None:
    """Declare the action of `data`."""
    from segformer_spark.data.grouping import GROUP_BY_HELP

    parser = add_verb(
        actions,
        "init",
        "From a folder of images with masks or polygons to a configuration that trains; the folder stays as it is.",
        "segformer-spark data init photos/ --name leaves",
        init,
    )
    parser.add_argument("folder", type=Path, help="images with masks beside them, in masks/, or as polygons")
    parser.add_argument("--name", required=True, help="of the configuration NAME.yaml and of its runs")
    parser.add_argument("--output", type=Path, default=Path(), help="folder to write to (default: this one)")
    parser.add_argument(
        "--annotations",
        type=Path,
        default=None,
        help="COCO file, or folder with YOLO or LabelMe files (default: looked for beside the images)",
    )
    parser.add_argument(
        "--classes", nargs="+", default=None, metavar="NAME", help="names of the classes, by their numbers in masks"
    )
    parser.add_argument(
        "--val-fraction", type=share, default=0.2, metavar="SHARE", help="images to validate on (default: %(default)s)"
    )
    parser.add_argument("--group-by", default=None, metavar="RULE", help=GROUP_BY_HELP)
    parser.add_argument("--seed", type=not_negative, default=0, help="of the split (default: %(default)s)")
    parser.add_argument(
        "--exif-orientation",
        choices=ORIENTATIONS,
        default=None,
        help="whether masks were drawn over pixels as stored, or as viewers show them (default: by sizes)",
    )
    parser.add_argument("--skip-unpaired", action="store_true", help="leave out images without mask, and the reverse")
    parser.add_argument(
        "--max-pixels", type=positive, default=None, help="refuse larger images (default: that of data.max_pixels)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing NAME.yaml")


def init(arguments: argparse.Namespace) -> int:
    """Look, say what was found, write."""
    from segformer_spark.config.data_schema import MAX_PIXELS
    from segformer_spark.data.init.project import InitOptions, init_project
    from segformer_spark.models.weights import weights_folder
    from segformer_spark.run.console import logger, setup_logging

    setup_logging()
    options = InitOptions(
        folder=arguments.folder,
        name=arguments.name,
        output=arguments.output,
        annotations=arguments.annotations,
        class_names=arguments.classes,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        group_by=arguments.group_by,
        exif_orientation=arguments.exif_orientation,
        skip_unpaired=arguments.skip_unpaired,
        overwrite=arguments.overwrite,
        max_pixels=arguments.max_pixels or MAX_PIXELS,
        has_weights=(weights_folder(Path("weights"), "b0", "ade20k") / "model.safetensors").is_file(),
        command=shlex.join(["segformer-spark", *sys.argv[1:]]),
    )
    for line in init_project(options).lines():
        logger.info("%s", line)
    logger.info("configuration: %s", options.config)
    logger.info("next: segformer-spark train --config %s", options.config)
    return 0
