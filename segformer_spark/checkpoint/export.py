"""Models as folders: best/ and final/. SegFormer's load with plain transformers (from_pretrained, pipeline); weights of
other models have the names of the library that they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors.torch import save_file
from torch import Tensor
from transformers import SegformerImageProcessor

from segformer_spark.checkpoint.model_readme import readme_text
from segformer_spark.config.explain import first_problem
from segformer_spark.config.image_size import ImageSize, Size, height_width, parse_size, size_text
from segformer_spark.config.schema import InferenceConfig, ModelConfig
from segformer_spark.config.section import Section
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD
from segformer_spark.errors import CheckpointError, ConfigError, DataError
from segformer_spark.files.atomic import atomic_folder, write_json, write_text
from segformer_spark.files.checksums import write_checksums
from segformer_spark.files.json_file import read_json_object
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.pretrained import load_network, load_whole
from segformer_spark.models.published_config import read_segformer_config
from segformer_spark.models.registry import build_network
from segformer_spark.models.segformer import SegFormer
from segformer_spark.models.weights import CARD
from segformer_spark.run.console import logger

_MOST_BYTES = 2**24


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says beside the weights.

    Attributes:
        dataset, class_names, colors, background: the classes it knows.
        image_size: (height, width) in pixels of the model's input.
        inference: how images are shown to it (`inference` of the configuration).
        step, epoch, metrics: when and how well; metrics may be empty.
        run: name of the training run.
        model: what the network is (`name`, `encoder` and `library`).
        exif_orientation: whether it was shown pixels as files store them, or turned upright.
        recipe: how it was trained, for README.md; empty where nobody has said.
        flip_pairs: classes that a left-right flip exchanges; None where nobody has said.
    """

    dataset: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: int | None
    image_size: Size
    inference: dict[str, Any]
    step: int
    epoch: int
    metrics: dict[str, float]
    run: str
    model: dict[str, Any] = field(default_factory=lambda: {"name": "segformer"})
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    exif_orientation: Literal["stored", "upright"] = "stored"
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> ClassInfo:
        return ClassInfo(self.class_names, self.colors, self.background)

    def view(self, **changes: Any) -> InferenceView:
        """What the model is to be shown; `changes` replace fields of `inference`.

        Raises:
            ConfigError: the changes contradict how the model was exported.
        """
        try:
            return InferenceView(self.image_size, InferenceConfig(**{**self.inference, **changes}))
        except ValidationError as error:
            reasons = "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in error.errors())
            raise ConfigError(f"the model of run {self.run} cannot be shown images in this way: {reasons}") from error


def export_model(
    model: SegmentationModel,
    weights: Mapping[str, Tensor],
    live_names: Mapping[str, str],
    folder: Path,
    card: ModelCard,
) -> None:
    """Write weights, config.json, preprocessor_config.json, README.md, the card and SHA256SUMS; all or nothing. For
    rank 0.

    Args:
        weights: fp32 tensors by stored name; live_names maps the model's names to those.
    """
    with atomic_folder(folder) as temporary:
        if isinstance(model, SegFormer):
            state = {live.removeprefix("network."): weights[name].contiguous() for live, name in live_names.items()}
            model.network.save_pretrained(temporary, state_dict=state)
        else:
            tensors = {stored: weights[stored].contiguous() for stored in live_names.values()}
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            write_json(temporary / "config.json", _config_json(card))
        _processor(card).save_pretrained(temporary)
        write_json(temporary / CARD, asdict(card))
        write_text(temporary / "README.md", readme_text(card, transformers=isinstance(model, SegFormer)))
        write_checksums(temporary)


def _config_json(card: ModelCard) -> dict[str, Any]:
    """What SegFormer's config.json says too, for models that transformers does not know."""
    names = dict(enumerate(card.class_names))
    labels = {name: index for index, name in names.items()}
    return {"model_type": card.model["name"], **card.model, "id2label": names, "label2id": labels}


def _processor(card: ModelCard) -> SegformerImageProcessor:
    return SegformerImageProcessor(
        # Other views keep the ratio of the sides, which this processor cannot.
        do_resize=card.view().config.resize == "image_size",
        size=dict(zip(("height", "width"), card.image_size, strict=True)),
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        do_reduce_labels=False,
    )


def read_card(folder: Path) -> ModelCard:
    """The card of an exported model, or what a published SegFormer's configuration says in place of one.

    Raises:
        CheckpointError: the folder is neither.
    """
    if not (folder / CARD).is_file() and (folder / "config.json").is_file():
        return _published_card(folder)
    try:
        return card_of(read_json_object(folder / CARD, _MOST_BYTES))
    except (DataError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: this is not a model exported by segformer_spark ({CARD}: {error}). "
            "Give a run's best/ or final/ folder, such as runs/NAME/best."
        ) from error


class _CardFile(Section):
    """The card as JSON."""

    dataset: str
    class_names: list[str] = Field(min_length=1, max_length=65_536)
    colors: list[Annotated[tuple[int, int, int], Field(strict=False)]]
    background: int | None
    image_size: ImageSize
    inference: dict[str, Any] = Field(default_factory=dict)
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)
    metrics: dict[str, float | None]
    run: str
    model: dict[str, Any] = Field(default_factory=lambda: {"name": "segformer"})
    flip_pairs: list[Annotated[tuple[str, str], Field(strict=False)]] | None = None
    exif_orientation: Literal["stored", "upright"] = "upright"  # models exported before there was a choice
    recipe: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _classes_go_together(self) -> _CardFile:
        number = len(self.class_names)
        if len(self.colors) != number or not all(0 <= channel <= 255 for color in self.colors for channel in color):
            raise ValueError(f"{len(self.colors)} colours of {number} classes, each of three numbers from 0 to 255")
        if self.background is not None and not 0 <= self.background < number:
            raise ValueError(f"background {self.background} is none of {number} classes")
        unknown = {name for pair in self.flip_pairs or () for name in pair} - set(self.class_names)
        if unknown:
            raise ValueError(f"flip_pairs: {', '.join(sorted(unknown))} is no class")
        return self


def card_of(raw: dict[str, Any]) -> ModelCard:
    """The card that JSON holds.

    Raises:
        ValueError: it is none; the key is named.
    """
    try:
        own = _CardFile.model_validate(raw)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    values = {name: getattr(own, name) for name in _CardFile.model_fields}
    lists = {"class_names": tuple(own.class_names), "colors": tuple(own.colors)}
    pairs = None if own.flip_pairs is None else tuple(own.flip_pairs)
    return ModelCard(**{**values, **lists, "flip_pairs": pairs, "image_size": height_width(own.image_size)})


def _published_card(folder: Path) -> ModelCard:
    """Classes from config.json; the input's size from preprocessor_config.json or a name such as ...-ade-640-640."""
    try:
        names: dict[int, str] = read_segformer_config(folder).id2label
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: neither a model exported by segformer_spark nor a published SegFormer: {error.problem}"
        ) from error
    size = _published_size(folder)
    if size is None:
        raise CheckpointError(
            f"{folder}: a SegFormer without {CARD}, and neither preprocessor_config.json nor the folder's name "
            "(...-512-512) say the size of its images"
        )
    logger.info("%s: no %s: taken for a published SegFormer on images of %s px", folder, CARD, size_text(size))
    colors = tuple(tuple(int(channel) for channel in row) for row in _palette(len(names)))
    return ModelCard(
        dataset="",
        class_names=tuple(names[index] for index in range(len(names))),
        colors=colors,  # type: ignore[arg-type]
        background=None,
        image_size=size,
        inference={},
        step=0,
        epoch=0,
        metrics={},
        run=folder.name,
    )


def _published_size(folder: Path) -> Size | None:
    try:
        processor = read_json_object(folder / "preprocessor_config.json", _MOST_BYTES)
        return parse_size([processor["size"][side] for side in ("height", "width")])
    except (DataError, ValueError, KeyError, TypeError):
        named = re.search(r"-(\d+)-(\d+)$", folder.name)
        return parse_size([int(side) for side in named.groups()]) if named else None


def _palette(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(30, 256, (number, 3), dtype=np.uint8)


def load_model(folder: Path) -> tuple[SegmentationModel, ModelCard]:
    """An exported model in evaluation mode, and its card.

    A run that is training may replace the folder meanwhile: card and weights are those of one export.

    Raises:
        CheckpointError: the folder was not exported by this package, or is damaged.
    """
    while True:
        card = read_card(folder)
        try:
            model = _load_weights(folder, card)
        except CheckpointError:
            if read_card(folder) == card:
                raise
            continue
        if read_card(folder) == card:
            model.eval()
            return model, card


def _load_weights(folder: Path, card: ModelCard) -> SegmentationModel:
    if card.model["name"] == "segformer":
        return SegFormer(load_network(folder))
    config = ModelConfig(name=card.model["name"], encoder=card.model["encoder"], pretrained="none")
    model = build_network(config, len(card.class_names), card.image_size)
    load_whole(model, folder)
    return model
