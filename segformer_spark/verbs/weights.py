"""`weights fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segformer_spark.config.variants import VARIANTS
from segformer_spark.verbs.arguments import Subparsers, add_actions, add_verb

_SOURCES = ("ade20k", "cityscapes", "imagenet")


def add(subparsers: Subparsers) -> None:
    """Declare the verb and its action."""
    parser = add_verb(
        add_actions(subparsers, "weights", "Pretrained weights."),
        "fetch",
        "Download pretrained weights; run this where there is internet, before submitting jobs.",
        "segformer-spark weights fetch --variant b2 --source ade20k",
        fetch,
    )
    parser.add_argument("--variant", choices=VARIANTS, default="b2", help="(default: %(default)s)")
    parser.add_argument("--source", choices=_SOURCES, default="ade20k", help="(default: %(default)s)")
    parser.add_argument("--encoder", default=None, help="ImageNet weights of another model's encoder, such as resnet50")
    parser.add_argument("--all", action="store_true", help="every variant and source (about 3.5 GB)")
    parser.add_argument(
        "--weights-dir", type=Path, default=Path("weights"), help="folder to fill (default: %(default)s)"
    )


def fetch(arguments: argparse.Namespace) -> int:
    """Download pretrained weights."""
    from segformer_spark.models.pretrained import fetch_encoder, fetch_weights
    from segformer_spark.models.weights import SOURCES

    if arguments.encoder is not None:
        fetched = fetch_encoder(arguments.encoder, arguments.weights_dir)
        print(f"{fetched.folder}  sha256 {fetched.sha256}")
        return 0
    wanted = [(v, s) for s in SOURCES for v in VARIANTS] if arguments.all else [(arguments.variant, arguments.source)]
    for variant, source in wanted:
        fetched = fetch_weights(variant, source, arguments.weights_dir)
        note = " (converted from .bin)" if fetched.converted else ""
        print(f"{fetched.folder}  sha256 {fetched.sha256}{note}")
    return 0
