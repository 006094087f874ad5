"""`bench export`: SegFormer as ONNX on onnxruntime's CPU provider: transformers' own export beside this package's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation

from segformer_spark.checkpoint.export import ModelCard
from segformer_spark.checkpoint.onnx_model import OnnxFacts, OnnxModel, facts_of
from segformer_spark.config.image_size import Size, size_text
from segformer_spark.data.palette import distinct_colors
from segformer_spark.export.onnx_export import OPSET, dynamic_shapes, export_onnx, quiet_exporter
from segformer_spark.export.quantize import quantize
from segformer_spark.models.segformer import SegFormer, build_segformer, segformer_config

PLAIN, MERGED, INT8 = "transformers, fp32", "merged head, fp32", "merged head, int8"
_NUM_CALIBRATION = 4


@dataclass(frozen=True)
class ExportRow:
    """One file's measurements: of every round the seconds, and the time of transformers' export over its own."""

    name: str
    seconds: Sequence[float]
    speedups: Sequence[float]

    @property
    def speedup(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.speedups)


def bench_exports(variant: str, num_classes: int, image_size: Size, rounds: int, threads: int) -> list[ExportRow]:
    """Random weights, one image, interleaved rounds in this process after one that does not count."""
    names = [f"class_{index}" for index in range(num_classes)]
    model = build_segformer(variant, names, seed=0).eval()
    assert isinstance(model, SegFormer)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((1, 3, *image_size), dtype=np.float32))
    runs = {
        name: _runner(content, facts, images, threads)
        for name, (content, facts) in _files(model, names, image_size).items()
    }
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    plain = seconds[PLAIN]
    return [
        ExportRow(name, own, [base / value for base, value in zip(plain, own, strict=True)])
        for name, own in seconds.items()
    ]


def _runner(content: bytes, facts: OnnxFacts, images: Tensor, threads: int) -> Callable[[], Tensor]:
    model = OnnxModel(content, facts, threads)
    return lambda: model(images)


def _files(model: SegFormer, names: Sequence[str], image_size: Size) -> dict[str, tuple[bytes, OnnxFacts]]:
    """{name: ONNX file and its facts}."""
    card = ModelCard(
        dataset="",
        class_names=tuple(names),
        colors=distinct_colors(len(names)),
        background=None,
        image_size=image_size,
        inference={},
        step=0,
        epoch=0,
        metrics={},
        run="bench",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merged.onnx"
        export_onnx(model, card, path)
        merged = path.read_bytes()
    facts = facts_of(merged)
    rng = np.random.default_rng(1)
    shape = (1, 3, *image_size)
    calibration = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for _ in range(_NUM_CALIBRATION)]
    return {
        PLAIN: (_plain(model, names, image_size), facts),
        MERGED: (merged, facts),
        # On noise through random weights classes say nothing: no layer is kept for them.
        INT8: (quantize(merged, facts, calibration, least_agreement=0).content, facts),
    }


class _Logits(nn.Module):
    """transformers' model, whose output has more than logits."""

    def __init__(self, network: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def _plain(model: SegFormer, names: Sequence[str], image_size: Size) -> bytes:
    """What a user of transformers alone would export: the same sizes, with dynamic axes."""
    variant = model.variant
    assert variant is not None
    network = SegformerForSemanticSegmentation(segformer_config(variant, names)).eval()
    with quiet_exporter():
        program: Any = torch.onnx.export(
            _Logits(network).eval(),
            (torch.zeros(2, 3, *image_size),),
            dynamo=True,
            dynamic_shapes=dynamic_shapes(model),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    content: bytes = program.model_proto.SerializeToString()
    return content


def table(variant: str, image_size: Size, threads: int, rows: Sequence[ExportRow]) -> list[str]:
    """Aligned lines."""
    lines = [
        f"ONNX on onnxruntime, CPU, {threads} thread(s): SegFormer-{variant.upper()}, 1 x {size_text(image_size)} px",
        f"{'':<24}{'ms':>9}{'speedup':>10}{'from':>7}{'to':>7}",
    ]
    for row in rows:
        low, high = min(row.speedups), max(row.speedups)
        median = 1000 * statistics.median(row.seconds)
        lines.append(f"{row.name:<24}{median:>9.1f}{row.speedup:>10.2f}{low:>7.2f}{high:>7.2f}")
    return lines


def as_json(rows: Sequence[ExportRow]) -> list[dict[str, Any]]:
    """Everything that was measured."""
    return [{**asdict(row), "speedup": row.speedup} for row in rows]
