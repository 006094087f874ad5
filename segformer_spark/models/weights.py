"""Where published weights come from, and where they lie. Imports no torch: a node is checked before training starts."""

from __future__ import annotations

from pathlib import Path

from segformer_spark.config.image_size import Size, parse_size
from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.variants import VARIANTS
from segformer_spark.errors import CheckpointError, DataError, UserError
from segformer_spark.files.checksums import CHECKSUMS, check_checksums
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.regular_file import open_regular
from segformer_spark.models.registry import ENCODER_REPOSITORIES, encoder_of

CARD = "segformer_spark.json"
"""In a model folder of this package: its classes, and how it is shown images."""

_MOST_HEADER = 2**24
"""A header has some 100 bytes for each tensor; the largest networks have thousands."""

SOURCES = ("ade20k", "cityscapes", "imagenet")


def trained_size(folder: Path) -> Size | None:
    """(height, width) of the images that an exported model was trained on; None where its folder does not say."""
    try:
        return parse_size(read_json_object(folder / CARD)["image_size"])
    except (DataError, ValueError, KeyError, TypeError):
        return None


def check_weights_folder(folder: Path) -> None:
    """Whether the files of a model folder are those that were written, as far as it says so: SHA256SUMS of an export,
    fetched.json of fetched weights. Other folders, and exports of before 0.3, have neither.

    Raises:
        CheckpointError: weights are missing, cut or changed, or so large a header that it is none.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{folder}: there is no model.safetensors in it; weights in several files are not read")
    check_header(weights)
    if (folder / CHECKSUMS).is_file():
        faults = check_checksums(folder, unlisted=False)
        if faults:
            raise CheckpointError(
                f"{folder}: {len(faults)} files are not as they were exported, first {faults[0]}",
                f"Take another model or copy; where it was changed on purpose, remove {CHECKSUMS}.",
            )
    elif (folder / "fetched.json").is_file():
        try:
            expected = read_json_object(folder / "fetched.json", 2**20).get("sha256")
        except DataError as error:
            raise CheckpointError(f"{error.problem}", "Fetch the weights again.") from error
        if sha256_of(weights) != expected:
            raise CheckpointError(
                f"{weights}: the file is damaged, its sha256 is not that of fetched.json", "Fetch it again."
            )


def check_header(weights: Path) -> None:
    """Raise CheckpointError for a safetensors file whose header cannot be one (format: 8 bytes of length, JSON)."""
    try:
        with open_regular(weights) as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = stream.seek(0, 2)
    except OSError as error:
        raise CheckpointError(f"{weights}: the weights cannot be read: {error.strerror}") from error
    if not 2 <= length <= min(_MOST_HEADER, size - 8):
        raise CheckpointError(
            f"{weights}: this is no safetensors file: its header would have {length} bytes; a file has {size}, and the "
            f"limit is {_MOST_HEADER}"
        )


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
