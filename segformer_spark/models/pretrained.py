"""Pretrained weights: `weights fetch` brings them into a folder, training reads that folder and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import SegformerForSemanticSegmentation

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import ModelConfig
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.files.atomic import atomic_folder, write_json
from segformer_spark.files.digest import sha256_of
from segformer_spark.models.classifier_rows import follows_names, take_rows_by_name
from segformer_spark.models.encoder_weights import fit_stored_positions, load_encoder, read_state
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.published_config import read_segformer_config
from segformer_spark.models.registry import ENCODER_REPOSITORIES, build_network, find_architecture
from segformer_spark.models.segformer import SegFormer, build_segformer, segformer_config
from segformer_spark.models.weights import (
    check_weights_folder,
    encoder_folder,
    locate_weights,
    repository_id,
    weights_folder,
)
from segformer_spark.run.console import logger


@dataclass(frozen=True)
class FetchedWeights:
    """What `fetch_weights` brought: folder, digest of model.safetensors, and whether it was converted from a .bin."""

    folder: Path
    sha256: str
    converted: bool


def fetch_weights(variant: str, source: str, weights_dir: Path) -> FetchedWeights:
    """Download weights from the hub, once; a .bin is read with weights_only and converted to safetensors.

    Raises:
        UserError: the hub cannot be reached or does not have the file.
    """
    folder = weights_folder(weights_dir, variant, source)
    repository = repository_id(variant, source)
    with atomic_folder(folder) as temporary:
        _download(repository, "config.json", temporary)
        converted = False
        try:
            _download(repository, "model.safetensors", temporary)
        except _NotInRepository:
            _download(repository, "pytorch_model.bin", temporary)
            _convert(temporary / "pytorch_model.bin", temporary / "model.safetensors")
            converted = True
        digest = _sign(temporary, repository, converted=converted)
    return FetchedWeights(folder, digest, converted)


def _sign(folder: Path, repository: str, *, converted: bool) -> str:
    """Write where the weights come from beside them; returns their sha256."""
    digest = sha256_of(folder / "model.safetensors")
    for leftover in folder.glob(".cache"):
        shutil.rmtree(leftover, ignore_errors=True)
    write_json(folder / "fetched.json", {"repository": repository, "sha256": digest, "converted_from_bin": converted})
    return digest


def fetch_encoder(encoder: str, weights_dir: Path) -> FetchedWeights:
    """Download an encoder's ImageNet weights from the hub, once.

    Raises:
        UserError: the hub cannot be reached, or has none for this encoder.
    """
    folder = encoder_folder(weights_dir, encoder)
    repository = ENCODER_REPOSITORIES[encoder]
    with atomic_folder(folder) as temporary:
        _download(repository, "model.safetensors", temporary)
        return FetchedWeights(folder, _sign(temporary, repository, converted=False), False)


def build_model(
    config: ModelConfig, class_names: Sequence[str], seed: int, image_size: Size = (512, 512)
) -> SegmentationModel:
    """The model that a configuration describes, with its starting weights.

    Args:
        image_size: (height, width) of training images, for networks with learnt positions.

    Raises:
        ConfigError: no such model or encoder.
        CheckpointError: the weights are not there, or do not fit. Never starts from random weights instead.
    """
    find_architecture(config)
    if config.name == "segformer":
        return _build_segformer(config, class_names, seed)
    source = None if config.pretrained == "none" else locate_weights(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_network(config, len(class_names), image_size)
    if source is not None and source.is_dir():
        by_name = follows_names(source, class_names)
        fresh = {stored: value.clone() for stored, value in _classifier_of(model).items()} if by_name else {}
        load_whole(model, source, new_classes=True)
        if by_name:
            take_rows_by_name(model, fresh, source, class_names)
    elif source is not None:
        load_encoder(model, source)
    return model


def _classifier_of(model: SegmentationModel) -> dict[str, Tensor]:
    """The tensors that depend on the number of classes, by stored name."""
    own = model.state_dict()
    return {stored: own[name] for name, stored in model.stored_names().items() if stored in model.classifier_names}


def load_whole(model: SegmentationModel, folder: Path, *, new_classes: bool = False) -> None:
    """Load all weights of a model folder of this package.

    Args:
        new_classes: a classifier of another number of classes is left at random.

    Raises:
        CheckpointError: the folder is damaged or holds another model.
    """
    check_weights_folder(folder)
    state = read_state(folder / "model.safetensors")
    live = {stored: name for name, stored in model.stored_names().items()}
    own = model.state_dict()
    if new_classes:
        target = {stored: own[name] for stored, name in live.items()}
        state, resized = fit_stored_positions(model, state, target, folder)
        for what in resized:
            logger.info("%s: %s", folder, what)
    others = [name for name in state if name in live and state[name].shape != own[live[name]].shape]
    classifier = [name for name in others if new_classes and name in model.classifier_names]
    wrong = _describe_misfit(live.keys() - state.keys(), state.keys() - live.keys(), set(others) - set(classifier))
    if wrong:
        raise CheckpointError(
            f"{folder}: the weights do not fit this model ({model.name}): {wrong}. Check model.name, model.encoder and "
            "the number of classes"
        )
    model.load_state_dict({live[name]: value for name, value in state.items() if name not in classifier}, strict=False)
    if classifier:
        _say_new_classifier(folder, model.num_classes)


def _build_segformer(config: ModelConfig, class_names: Sequence[str], seed: int) -> SegFormer:
    options: dict[str, Any] = {"dropout": config.dropout, "drop_path": config.drop_path}
    source = None if config.pretrained == "none" else locate_weights(config)
    if source is not None and source.is_dir():
        hub_config = segformer_config(config.sizes, class_names, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = load_network(source, config=hub_config)
        model = SegFormer(network, freeze_backbone=config.freeze_backbone)
        if follows_names(source, class_names):
            fresh = _classifier_of(build_segformer(config.sizes, class_names, seed=seed, **options))
            take_rows_by_name(model, fresh, source, class_names)
        return model
    model = build_segformer(config.sizes, class_names, freeze_backbone=config.freeze_backbone, seed=seed, **options)
    if source is not None:
        load_encoder(model, source)
    return model


def _describe_misfit(missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]) -> str:
    """How many and the first of each kind; empty where all fit."""
    kinds = {"missing": missing, "left over": unexpected, "of another shape": mismatched}
    return "; ".join(f"{len(names)} {kind}: {', '.join(sorted(names)[:3])}" for kind, names in kinds.items() if names)


def _say_new_classifier(folder: Path, num_classes: int) -> None:
    logger.info("%s: its classifier is of another number of classes and starts at random, with %d", folder, num_classes)


def load_network(folder: Path, *, config: Any = None) -> SegformerForSemanticSegmentation:
    """Load a Hugging Face folder, strictly: every weight must be found and fit.

    Args:
        config: build for this configuration instead of the folder's; then the classifier, and only it, may differ.

    Raises:
        CheckpointError: the folder is damaged or holds another model.
    """
    check_weights_folder(folder)
    try:
        network, report = SegformerForSemanticSegmentation.from_pretrained(
            folder,
            config=read_segformer_config(folder) if config is None else config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=config is not None,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded: {error}") from error
    mismatched = [item[0] if isinstance(item, tuple | list) else item for item in report["mismatched_keys"]]
    new = SegFormer.classifier_names if config is not None else ()
    # A deeper variant of the same width fits without a missing tensor, but some are left over.
    wrong = _describe_misfit(
        set(report["missing_keys"]) - set(new), report["unexpected_keys"], set(mismatched) - set(new)
    )
    if wrong:
        raise CheckpointError(
            f"{folder}: the weights do not fit this model: {wrong}. Check model.variant; an encoder alone is given as "
            "its file, model.safetensors"
        )
    if any(name in SegFormer.classifier_names for name in mismatched):
        _say_new_classifier(folder, network.config.num_labels)
    return network


class _NotInRepository(Exception):
    pass


def _download(repository: str, filename: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(repository, filename, local_dir=folder)
    except LocalEntryNotFoundError as error:
        offline = " HF_HUB_OFFLINE is set; unset it." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"{repository}: {filename} cannot be fetched, the hub cannot be reached.{offline} "
            "Run this on a login node or a machine with internet and copy the weights folder."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{repository}: there is no such repository on the hub") from error
    except EntryNotFoundError as error:
        raise _NotInRepository(filename) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{repository}: {filename} cannot be fetched: {error}") from error


def _convert(source: Path, target: Path) -> None:
    state = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target, metadata={"format": "pt"})
    source.unlink()
