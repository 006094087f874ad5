"""ONNX files against PyTorch and transformers, on odd sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import SegformerForSemanticSegmentation

from segformer_spark.checkpoint.export import load_model
from segformer_spark.checkpoint.onnx_model import METADATA, facts_of, load_onnx
from segformer_spark.config.schema import ModelConfig
from segformer_spark.data.readers.spark import SPARK_CLASSES
from segformer_spark.data.transforms import normalize_images
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.export import onnx_export
from segformer_spark.export.onnx_export import LARGEST_DIFFERENCE, export_onnx
from segformer_spark.export.quantize import quantize
from segformer_spark.models.registry import build_network, describe_model
from tests.once import made_once
from tests.tiny import export_tiny, untrained_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """{with preprocessing: file}."""

    def make(target: Path) -> None:
        model, card = load_model(export_tiny(target / "tiny"))
        for preprocessing in (False, True):
            difference = export_onnx(model, card, target / f"{preprocessing}.onnx", preprocessing=preprocessing)
            assert 0 <= difference < 1e-5

    folder = made_once(tmp_path_factory, "onnx_files", make)
    return {preprocessing: folder / f"{preprocessing}.onnx" for preprocessing in (False, True)}


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(height)
    return torch.from_numpy(rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 97, 131), (1, 33, 45), (3, 64, 96), (2, 200, 32)])
def test_onnxruntime_alone_gives_transformers_logits(folder: Path, files: dict[bool, Path], size: Any) -> None:
    network = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    images = pixels(*size)
    with torch.inference_mode():
        expected = network(pixel_values=normalize_images(images)).logits.numpy()
    for preprocessing, path in files.items():
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feed = (images if preprocessing else normalize_images(images)).numpy()
        (found,) = session.run(["logits"], {"images": feed})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= LARGEST_DIFFERENCE * np.abs(expected).max()


@pytest.mark.parametrize("preprocessing", [False, True])
def test_the_file_is_a_model_with_a_card(folder: Path, files: dict[bool, Path], preprocessing: bool) -> None:
    model, card = load_onnx(files[preprocessing])
    original, own_card = load_model(folder)
    assert card == own_card
    images = normalize_images(pixels(2, 70, 51))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), original(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="gives logits alone"):
        model(images, only_features=True)


def test_a_difference_is_an_error_and_writes_nothing(
    folder: Path, files: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card = load_model(folder)
    with torch.no_grad():
        model.network.decode_head.classifier.weight.mul_(1.01)
    written = onnx.load(files[False])
    del written.metadata_props[:]
    monkeypatch.setattr(onnx_export, "_traced", lambda *given, **options: written)
    with pytest.raises(UserError, match=r"logits differ from PyTorch's by .* nothing was written"):
        export_onnx(model, card, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.sweep
def test_a_model_of_fixed_size_says_so(tmp_path: Path) -> None:
    """smp's U-Net answers torch.export for one size only."""
    config = ModelConfig(name="unet", encoder="resnet18", pretrained="none")
    torch.manual_seed(0)
    model = build_network(config, 3, (64, 64)).eval()
    card = replace(untrained_card(SPARK_CLASSES), model=describe_model(config))
    export_onnx(model, card, tmp_path / "unet.onnx")
    written, _ = load_onnx(tmp_path / "unet.onnx")
    images = torch.randn(1, 3, 50, 60)
    with torch.inference_mode():
        torch.testing.assert_close(written(images), model(images), rtol=1e-3, atol=1e-4)
        if written.facts.fixed_size is not None:
            with pytest.raises(UserError, match="is for images of 64 alone"):
                written(torch.randn(1, 3, 100, 60))


def test_files_of_other_programs_are_named(files: dict[bool, Path], tmp_path: Path) -> None:
    model = onnx.load(files[False])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="an ONNX file of another program"):
        load_onnx(tmp_path / "other.onnx")
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps({"card": {}})
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_onnx(tmp_path / "damaged.onnx")
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(CheckpointError, match="onnxruntime cannot read it"):
        load_onnx(tmp_path / "text.onnx")


def test_int8_keeps_the_classes_and_quantises_every_layer(files: dict[bool, Path]) -> None:
    facts = facts_of(files[False])
    images = [normalize_images(pixels(1, 64, 64 + 32 * index)) for index in range(3)]
    found = quantize(files[False].read_bytes(), facts, images, least_agreement=0)
    graph = onnx.load_model_from_string(found.content).graph
    assert facts_of(found.content).precision == "int8"
    assert 0.5 < found.agreement <= 1
    assert not found.kept
    weights = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    produced = {output: node.op_type for node in graph.node for output in node.output}
    assert weights
    assert all(produced.get(node.input[1]) == "DequantizeLinear" for node in weights)
    scales = next(i for i in graph.initializer if i.name.endswith("_scale") and i.dims and i.dims[0] > 1)
    assert scales.dims[0] > 1, "one scale per channel"


def test_sensitive_layers_stay_in_fp32(files: dict[bool, Path]) -> None:
    facts = facts_of(files[False])
    images = [normalize_images(pixels(1, 64, 64))]
    plain = quantize(files[False].read_bytes(), facts, images, least_agreement=0)
    careful = quantize(files[False].read_bytes(), facts, images, least_agreement=1)
    assert careful.agreement >= plain.agreement
    if careful.kept:
        assert set(careful.kept) <= {"stage 1", "stage 2", "stage 3", "stage 4", "decode head"}
    else:
        assert careful.agreement == plain.agreement
