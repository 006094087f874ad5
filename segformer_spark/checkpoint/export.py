"""Models in the Hugging Face layout, loadable with plain transformers: best/ and final/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor
from transformers import SegformerImageProcessor

from segformer_spark.config.schema import InferenceConfig
from segformer_spark.data.dataset import ClassInfo
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD
from segformer_spark.errors import CheckpointError, ConfigError
from segformer_spark.models.pretrained import load_network
from segformer_spark.models.segformer import SegFormer
from segformer_spark.run.atomic import atomic_folder, write_json

_CARD = "segformer_spark.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says beside the weights.

    Attributes:
        dataset, class_names, colors, background: the classes it knows.
        image_size: side in pixels of the model's input.
        inference: how images are shown to it (`inference` of the configuration).
        step, epoch, metrics: when and how well; metrics may be empty.
        run: name of the training run.
    """

    dataset: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: int | None
    image_size: int
    inference: dict[str, Any]
    step: int
    epoch: int
    metrics: dict[str, float]
    run: str

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
    model: SegFormer, weights: Mapping[str, Tensor], live_names: Mapping[str, str], folder: Path, card: ModelCard
) -> None:
    """Write model.safetensors, config.json, preprocessor_config.json and the card, all or nothing. For rank 0.

    Args:
        weights: fp32 tensors by stored name; live_names maps the model's names to those.
    """
    state = {live.removeprefix("network."): weights[stored].contiguous() for live, stored in live_names.items()}
    with atomic_folder(folder) as temporary:
        model.network.save_pretrained(temporary, state_dict=state)
        processor = SegformerImageProcessor(
            # Other views than a square keep the ratio of the sides, which this processor cannot.
            do_resize=card.view().config.resize == "square",
            size={"height": card.image_size, "width": card.image_size},
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
            do_reduce_labels=False,
        )
        processor.save_pretrained(temporary)
        write_json(temporary / _CARD, asdict(card))


def read_card(folder: Path) -> ModelCard:
    """The card of an exported model.

    Raises:
        CheckpointError: the folder was not exported by this package.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        raw.setdefault("inference", {})  # models exported before there was a choice
        raw["class_names"] = tuple(raw["class_names"])
        raw["colors"] = tuple(tuple(color) for color in raw["colors"])
        return ModelCard(**raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: this is not a model exported by segformer_spark ({_CARD}: {error}). "
            "Give a run's best/ or final/ folder, such as runs/NAME/best."
        ) from error


def load_model(folder: Path) -> tuple[SegFormer, ModelCard]:
    """An exported model in evaluation mode, and its card."""
    card = read_card(folder)
    model = SegFormer(load_network(folder))
    model.eval()
    return model, card
