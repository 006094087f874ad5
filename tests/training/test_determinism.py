"""hardware.deterministic on GPUs: what cannot be is refused by name. torch's own list, found in what networks run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.errors import ConfigError
from segformer_spark.models.pretrained import build_model
from segformer_spark.training import setup
from segformer_spark.training.determinism import check_determinism
from tests.ranks import Group, run_on_ranks
from tests.tiny import TINY_SETTINGS

GPU = torch.device("cuda", 0)


def check(*overrides: str, device: torch.device = GPU) -> None:
    config = load_config(overrides=["hardware.deterministic=true", "model.pretrained=none", *overrides]).config
    model = build_model(config.model, ["a", "b", "c"], 0, config.data.input_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_determinism(config, model, config.training.loss, device)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            ("model.name=hiera", "model.encoder=hiera_tiny_224"),
            "hiera at 512 px has adaptive average pooling, whose",
            marks=pytest.mark.sweep,
        ),
        (("model.name=vit", "model.encoder=vit_tiny_patch16_224"), "vit at 512 px has bicubic interpolation, whose"),
        ((*TINY_SETTINGS, "training.loss.type=ohem"), "training.loss.type ohem has the k-th smallest value, whose"),
        (
            (*TINY_SETTINGS, "training.loss.type=ce", "hardware.kernels=cpu"),
            "training.loss.type ce has the negative log-likelihood of maps, whose",
        ),
    ],
)
def test_refused_by_name(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(*overrides)
    check(*overrides, "hardware.deterministic=false")
    check(*overrides, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "overrides",
    [
        TINY_SETTINGS,
        (*TINY_SETTINGS, "training.loss.type=lovasz"),
        ("model.name=vit", "model.encoder=vit_tiny_patch16_224", "data.image_size=224"),
        ("model.name=unet", "model.encoder=resnet18"),
    ],
)
def test_what_can_be_deterministic_is_taken(overrides: tuple[str, ...]) -> None:
    check(*overrides)


def test_training_asks(spark_root: Any) -> None:
    assert run_on_ranks(1, asked, str(spark_root))[0] == [True, "cpu"]


def asked(group: Group, root: str) -> list[Any]:
    found: list[Any] = []
    settings = [*TINY_SETTINGS, f"data.root={root}", "data.image_size=64", "hardware.deterministic=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            setup,
            "check_determinism",
            lambda config, model, loss, device: found.extend([config.hardware.deterministic, device.type]),
        )
        setup.prepare(load_config(overrides=settings).config, group)
    return found
