"""Where published weights come from, and where they lie. Imports no torch: a node is checked before training starts."""

from __future__ import annotations

import json
from pathlib import Path

from segformer_spark.config.image_size import Size, parse_size
from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.variants import VARIANTS
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.models.registry import ENCODER_REPOSITORIES, encoder_of

CARD = "segformer_spark.json"
"""In a model folder of this package: its classes, and how it is shown images."""

SOURCES = ("ade20k", "cityscapes", "imagenet")


def trained_size(folder: Path) -> Size | None:
    """(height, width) of the images that an exported model was trained on; None where its folder does not say."""
    try:
        return parse_size(json.loads((folder / CARD).read_text(encoding="utf-8"))["image_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def repository_id(variant: str, source: str) -> str:
    """The published repository of a variant's weights."""
    if source == "ade20k":
        size = "640-640" if variant == "b5" else "512-512"
        return f"nvidia/segformer-{variant}-finetuned-ade-{size}"
    if source == "cityscapes":
        return f"nvidia/segformer-{variant}-finetuned-cityscapes-1024-1024"
    if source == "imagenet":
        return f"nvidia/mit-{variant}"
    raise UserError(f"{source!r} is no source of weights; known: {', '.join(SOURCES)}")


def fetch_command(folder: Path) -> str | None:
    """The command that fetches the published weights that a folder is named after; None where it is named otherwise."""
    named = {repository_id(v, s).split("/")[1]: (v, s) for v in VARIANTS for s in SOURCES}
    if folder.name not in named:
        return None
    variant, source = named[folder.name]
    return f"segformer-spark weights fetch --variant {variant} --source {source} --weights-dir {folder.parent}"


def weights_folder(weights_dir: Path, variant: str, source: str) -> Path:
    """Where `fetch_weights` puts, and training looks for, the weights."""
    return weights_dir / repository_id(variant, source).split("/")[1]


def encoder_folder(weights_dir: Path, encoder: str) -> Path:
    """Where `fetch_encoder` puts, and training looks for, an encoder's ImageNet weights.

    Raises:
        UserError: the hub has none with the encoder's own parameter names.
    """
    if encoder not in ENCODER_REPOSITORIES:
        raise UserError(
            f"{encoder}: no ImageNet weights with its parameter names are known on the hub; known are those of "
            f"{', '.join(ENCODER_REPOSITORIES)}",
            "A file of your own goes into model.pretrained",
        )
    return weights_dir / ENCODER_REPOSITORIES[encoder].split("/")[1]


def locate_weights(config: ModelConfig) -> Path:
    """The folder of a whole model, or the file of an encoder, that `model.pretrained` means.

    Raises:
        CheckpointError: it is not there; the message says the command to run.
    """
    return _locate_segformer(config) if config.name == "segformer" else _locate_other(config)


def _locate_other(config: ModelConfig) -> Path:
    given = Path(config.pretrained)
    if config.pretrained == "imagenet":
        encoder = encoder_of(config)
        path = encoder_folder(Path(config.weights_dir), encoder) / "model.safetensors"
        fix = (
            f"On a machine with internet run: segformer-spark weights fetch --encoder {encoder} "
            f"--weights-dir {config.weights_dir} (or start from random weights with model.pretrained=none)"
        )
    else:
        path = given / "model.safetensors" if given.is_dir() else given
        fix = "model.pretrained is none, imagenet, a file of the encoder's weights, or a model folder"
    if not path.is_file():
        raise CheckpointError(f"pretrained weights: {path} does not exist", fix)
    return given if given.is_dir() else path


def _locate_segformer(config: ModelConfig) -> Path:
    if config.pretrained in SOURCES:
        folder = weights_folder(Path(config.weights_dir), config.variant, config.pretrained)
        path = folder / "model.safetensors"
        fix = (
            f"On a machine with internet run: segformer-spark weights fetch --variant {config.variant} "
            f"--source {config.pretrained} --weights-dir {config.weights_dir} "
            "(or start from random weights with model.pretrained=none)"
        )
    else:
        given = Path(config.pretrained)
        path = given if given.is_file() else given / "model.safetensors"
        fix = (
            f"model.pretrained is one of {', '.join(SOURCES)}, none, a file of the encoder's weights, or a folder with "
            "config.json and model.safetensors"
        )
    if not path.is_file():
        raise CheckpointError(f"pretrained weights: {path} does not exist", fix)
    is_encoder = config.pretrained == "imagenet" or path == Path(config.pretrained)
    return path if is_encoder else path.parent
