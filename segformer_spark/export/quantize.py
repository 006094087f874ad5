"""Static int8: convolutions and matrix products with weights in int8 per channel and activations in uint8.

QDQ format (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html), ranges by the smallest and
largest activation over calibration images. Weights take 7 of the 8 bits: without VNNI, CPUs add two products of 8 bits
into 16, which saturates. Attention, norms, GELU and upsampling stay in fp32, where they are faster or no slower.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segformer_spark.checkpoint.onnx_model import METADATA, OnnxFacts, OnnxModel
from segformer_spark.export.onnx_export import quiet_exporter, set_facts
from segformer_spark.run.console import logger

_QUANTIZED = ("Conv", "Gemm")
_STAGE = re.compile(r"(?:encoder|network|model)[\w.]*?\.?stages\.(\d+)\.")
_NAMED_GROUP = re.compile(r"^(?:network\.)?(?:model\.)?(?:network\.)?(\w+)")

LEAST_AGREEMENT = 0.995
"""Share of the pixels that are to keep their class."""


@dataclass(frozen=True)
class Quantized:
    """What came of it.

    Attributes:
        content: the ONNX file.
        agreement: share of the calibration images' pixels with the class that fp32 gives them.
        kept: groups of layers left in fp32, and the agreement when each was the only one.
    """

    content: bytes
    agreement: float
    kept: dict[str, float]


def quantize(
    source: bytes, facts: OnnxFacts, images: Sequence[torch.Tensor], least_agreement: float = LEAST_AGREEMENT
) -> Quantized:
    """An fp32 file of this package -> int8.

    Args:
        images: normalised (1, 3, H, W) each, for ranges and agreement; the fewer, the less both say.
        least_agreement: below, the layers that cost most are left in fp32.
    """
    facts = replace(facts, precision="int8")
    truth = _classes(OnnxModel(source, facts), images)
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(Path(folder), source, facts, images, truth)
        content, agreement = work.quantized([])
        kept: dict[str, float] = {}
        if agreement < least_agreement:
            found = {group: work.quantized([group])[1] for group in work.groups}
            for group in sorted(found, key=lambda name: -found[name]):
                if found[group] <= agreement or agreement >= least_agreement:
                    break
                candidate, score = work.quantized([*kept, group])
                if score > agreement:
                    content, agreement = candidate, score
                    kept[group] = found[group]
                    logger.info("int8: %s stays in fp32: %.3f %% of the pixels agree", group, 100 * score)
    return Quantized(content, agreement, kept)


def _classes(model: OnnxModel, images: Iterable[torch.Tensor]) -> list[NDArray[np.int64]]:
    with torch.inference_mode():
        return [model(one)[0].argmax(0).numpy() for one in images]


class _Work:
    """Files and facts that every trial shares."""

    def __init__(
        self,
        folder: Path,
        source: bytes,
        facts: OnnxFacts,
        images: Sequence[torch.Tensor],
        truth: Sequence[NDArray[np.int64]],
    ) -> None:
        import onnx

        self.folder, self.facts, self.images, self.truth = folder, facts, images, truth
        self.file = folder / "fp32.onnx"
        self.file.write_bytes(source)
        model = onnx.load_model_from_string(source)
        constants = {one.name for one in model.graph.initializer}
        self.group_of = {
            node.name: _group(node.input[1])
            for node in model.graph.node
            if node.op_type in _QUANTIZED and node.input[1] in constants
        }
        self.groups = sorted(set(self.group_of.values()))

    def quantized(self, kept: Sequence[str]) -> tuple[bytes, float]:
        """The model with these groups in fp32, and its agreement."""
        import onnx
        from onnxruntime import quantization

        target = self.folder / "int8.onnx"
        with quiet_exporter(), _quiet_root():
            quantization.quantize_static(
                str(self.file),
                str(target),
                _Reader(self.images, OnnxModel(self.file, self.facts)),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_quantize=[name for name, group in self.group_of.items() if group not in kept],
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        model = onnx.load(str(target))
        others = [entry for entry in model.metadata_props if entry.key != METADATA]
        del model.metadata_props[:]
        model.metadata_props.extend(others)
        set_facts(model, self.facts)
        content: bytes = model.SerializeToString()
        found = _classes(OnnxModel(content, self.facts), self.images)
        same = sum(int((one == other).sum()) for one, other in zip(found, self.truth, strict=True))
        return content, same / sum(one.size for one in self.truth)


def _group(weight: str) -> str:
    """The part of the network that a weight belongs to: a stage of the encoder, or its first name."""
    stage = _STAGE.search(weight)
    if stage:
        return f"stage {int(stage[1]) + 1}"
    named = _NAMED_GROUP.match(weight)
    return "decode head" if named is None or "levels" in weight or "classifier" in weight else named[1]


class _Reader:
    """Calibration images as onnxruntime asks for them."""

    def __init__(self, images: Sequence[torch.Tensor], model: OnnxModel) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([model.feed(one) for one in images])

    def get_next(self) -> dict[str, Any] | None:
        """The next image, or None."""
        return next(self._feeds, None)


@contextmanager
def _quiet_root() -> Iterator[None]:
    """onnxruntime's quantisation warns on the root logger about a step that dynamic shapes do without."""
    import logging

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
