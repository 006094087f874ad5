"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Verb = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse has no public name for it

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DEVICE_MODELS = ("a100-40", "a100-80", "h100", "v100")
ORIENTATIONS = ("stored", "upright")
CROPS = ("none", "box", "two_pass")


def add_verb(subparsers: Subparsers, name: str, summary: str, example: str, run: Verb) -> argparse.ArgumentParser:
    """A verb with its help, an example and what it does."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def add_actions(subparsers: Subparsers, name: str, summary: str) -> Subparsers:
    """A verb that has actions, such as `data check`."""
    parser = subparsers.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(title="actions", required=True, metavar="ACTION")


def add_config(parser: argparse.ArgumentParser, default: str = "the schema's defaults") -> None:
    """--config, --sweep with --sweep-index, and --set."""
    parser.add_argument("--config", type=Path, default=None, help=f"YAML file (default: {default})")
    parser.add_argument("--sweep", type=Path, default=None, help="take a run of this sweep in place of --config")
    parser.add_argument("--sweep-index", type=not_negative, default=0, help="which one (default: %(default)s)")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """--set section.key=value ..."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="overrides, for example training.epochs=20 training.batch_size=4",
    )


_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")


def with_every_set(argv: Sequence[str]) -> list[str]:
    """The command line with a --set before every KEY=VALUE that follows one: argparse would take the next words, which
    may be a verb's positional arguments, or only the first."""
    out: list[str] = []
    follows = False
    for argument in argv:
        if follows and out[-1] != "--set" and _ASSIGNMENT.match(argument):
            out.append("--set")
        elif out[-1:] != ["--set"]:
            follows = argument == "--set" or argument.startswith("--set=")
        out.append(argument)
    return out


def add_from_env(parser: argparse.ArgumentParser, what: str = "overrides") -> None:
    """--from-env, which the batch scripts pass."""
    parser.add_argument("--from-env", action="store_true", help=f"read {what} from the environment")


def positive_number(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def not_negative(text: str) -> int:
    """An integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how image files are read that belong to no configured data set."""
    parser.add_argument(
        "--exif-orientation",
        choices=ORIENTATIONS,
        default=None,
        help="pixels as the files store them, or turned by their EXIF tag (default: as the model was trained)",
    )
    parser.add_argument(
        "--max-pixels", type=positive, default=None, help="refuse larger images (default: that of data.max_pixels)"
    )


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_reading` was given, as fields of InferenceSettings."""
    given = {"exif_orientation": arguments.exif_orientation, "max_pixels": arguments.max_pixels}
    return {name: value for name, value in given.items() if value is not None}


IMAGE_SIZE_HELP = "a side in pixels, or height x width such as 720x1280"


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of a side in pixels or of text such as 720x1280, as `data.image_size`."""
    from segformer_spark.config.image_size import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
