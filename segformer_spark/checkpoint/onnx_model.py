"""An ONNX file of this package as a model, run by onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.checkpoint.export import ModelCard, card_of
from segformer_spark.config.image_size import Size, size_text
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.models.interface import SegmentationModel

METADATA = "segformer_spark"
"""Key of the facts in the file's metadata."""


@dataclass(frozen=True)
class OnnxFacts:
    """What the file says of itself.

    Attributes:
        card: of the model.
        preprocessing: whether it takes uint8 RGB and normalises itself.
        size_multiple, output_stride: as of the model (`models.interface`).
        fixed_size: (height, width) of the only images that it takes, or None.
        precision: fp32 or int8.
    """

    card: Mapping[str, Any]
    preprocessing: bool
    size_multiple: int
    output_stride: int
    fixed_size: Size | None = None
    precision: str = "fp32"


class OnnxModel(SegmentationModel):
    """Normalised images in, logits out.

    Args:
        source: a file, or its content.
        threads: of onnxruntime; None takes torch's number.
    """

    name = "onnx"
    mean: Tensor
    deviation: Tensor

    def __init__(self, source: Path | bytes, facts: OnnxFacts, threads: int | None = None) -> None:
        super().__init__(nn.Identity(), ())
        self.facts = facts
        self.size_multiple, self.output_stride = facts.size_multiple, facts.output_stride
        self.session = _session(source, threads or torch.get_num_threads())
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        return len(self.facts.card["class_names"])

    @property
    def encoder(self) -> nn.Module:
        return self.network

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        """(B, 3, H, W) -> logits (B, C, h, w).

        Raises:
            UserError: features are asked for, or the file is for images of another size.
        """
        if any(options.values()):
            raise UserError("an ONNX file gives logits alone: features come from the run's own model")
        size = (images.shape[-2], images.shape[-1])
        high, wide = self.padded(size)
        if self.facts.fixed_size is not None and (high, wide) != tuple(self.facts.fixed_size):
            raise UserError(
                f"this ONNX file is for images of {size_text(self.facts.fixed_size)} alone, not of {size_text(size)}"
            )
        logits = torch.from_numpy(self.session.run(None, self.feed(images))[0]).to(images.device)
        return self._cut(logits, size)

    def feed(self, images: Tensor) -> dict[str, Any]:
        """What onnxruntime is given for normalised images, padded to what the network takes."""
        height, width = images.shape[-2:]
        high, wide = self.padded((height, width))
        if (high, wide) != (height, width):
            images = functional.pad(images, (0, wide - width, 0, high - height))
        if self.facts.preprocessing:
            # What was normalised is exact to less than half a level.
            images = (images * self.deviation + self.mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return {self.session.get_inputs()[0].name: images.cpu().numpy()}


def facts_of(source: Path | bytes) -> OnnxFacts:
    """What a file says of itself.

    Raises:
        CheckpointError: it is no ONNX file of this package.
        UserError: onnxruntime is not installed.
    """
    where = source if isinstance(source, Path) else "the exported model"
    text = _session(source, 1).get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise CheckpointError(f"{where}: an ONNX file of another program: it does not say its classes", _FIX)
    try:
        raw = json.loads(text)
        if raw.get("fixed_size") is not None:
            raw["fixed_size"] = tuple(raw["fixed_size"])
        facts = OnnxFacts(**raw)
        card_of(dict(facts.card))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: what this ONNX file says of itself is damaged: {error}", _FIX) from error
    return facts


def load_onnx(path: Path) -> tuple[OnnxModel, ModelCard]:
    """The model of a file, and its card (`facts_of`)."""
    facts = facts_of(path)
    card = card_of(dict(facts.card))
    model = OnnxModel(path, facts)
    model.eval()
    return model, card


_FIX = "Make one with `segformer-spark export RUN --format onnx`."


def _session(source: Path | bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "ONNX files are run by onnxruntime, which is not installed",
            "Install it: pip install 'segformer-spark[export]'",
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        content = source if isinstance(source, bytes) else str(source)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        where = "the exported model" if isinstance(source, bytes) else source
        raise CheckpointError(f"{where}: onnxruntime cannot read it: {str(error).splitlines()[0]}") from error
