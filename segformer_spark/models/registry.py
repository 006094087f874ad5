"""Names of models in the configuration -> who builds them. A new model is one file and one line here.

Imports no torch: configurations are checked before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import ModelConfig
from segformer_spark.errors import ConfigError

if TYPE_CHECKING:
    from segformer_spark.models.interface import SegmentationModel

_RESNETS = ("resnet50", "resnet101")
_SMP = (*_RESNETS, "resnet18", "resnet34", "mobilenet_v2")
_MODELS = "segformer_spark.models"


@dataclass(frozen=True)
class Architecture:
    """How a model is built.

    Attributes:
        builder: "module:function", called with (encoder, num_classes, image_size, freeze_backbone).
        library: the package that the network comes from.
        encoders: what `model.encoder` may be, the default first; none for segformer, which has variants.
    """

    builder: str
    library: str
    encoders: tuple[str, ...] = ()


_VITS = ("vit_base_patch16_224", "vit_small_patch16_224", "vit_tiny_patch16_224")
_HIERAS = ("hiera_base_224", "hiera_small_224", "hiera_tiny_224")
MODELS: dict[str, Architecture] = {
    "segformer": Architecture(f"{_MODELS}.segformer:build_segformer", "transformers"),
    "unet": Architecture(f"{_MODELS}.smp_models:build_unet", "segmentation_models_pytorch", _SMP),
    "deeplabv3plus": Architecture(f"{_MODELS}.smp_models:build_deeplabv3plus", "segmentation_models_pytorch", _SMP),
    "fpn": Architecture(f"{_MODELS}.smp_models:build_fpn", "segmentation_models_pytorch", _SMP),
    "hiera": Architecture(f"{_MODELS}.smp_models:build_hiera", "segmentation_models_pytorch", _HIERAS),
    "deeplabv3": Architecture(f"{_MODELS}.torchvision_models:build_deeplabv3", "torchvision", _RESNETS),
    "fcn": Architecture(f"{_MODELS}.torchvision_models:build_fcn", "torchvision", _RESNETS),
    "vit": Architecture(f"{_MODELS}.vit:build_vit", "timm", _VITS),
}

ENCODER_REPOSITORIES: dict[str, str] = {
    "resnet18": "timm/resnet18.tv_in1k",
    "resnet34": "timm/resnet34.tv_in1k",
    "resnet50": "timm/resnet50.tv_in1k",
    "resnet101": "timm/resnet101.tv_in1k",
    "vit_base_patch16_224": "timm/deit_base_patch16_224.fb_in1k",
    "vit_small_patch16_224": "timm/deit_small_patch16_224.fb_in1k",
    "vit_tiny_patch16_224": "timm/deit_tiny_patch16_224.fb_in1k",
    "hiera_base_224": "timm/hiera_base_224.mae_in1k_ft_in1k",
    "hiera_small_224": "timm/hiera_small_224.mae_in1k_ft_in1k",
    "hiera_tiny_224": "timm/hiera_tiny_224.mae_in1k_ft_in1k",
}
"""ImageNet-1k weights on the hub, with the encoders' names and for images normalised as ours (ViT's are DeiT's)."""


def find_architecture(config: ModelConfig) -> Architecture:
    """The architecture of a configuration.

    Raises:
        ConfigError: no such model or encoder; the nearest names are said.
    """
    if config.name not in MODELS:
        raise ConfigError(f"model.name: there is no model {config.name!r}; {_nearest(config.name, MODELS)}")
    architecture = MODELS[config.name]
    if config.encoder is not None and config.encoder not in architecture.encoders:
        if not architecture.encoders:
            raise ConfigError(f"model.encoder {config.encoder}: segformer has variants instead; set model.variant")
        raise ConfigError(
            f"model.encoder: {config.name} has no encoder {config.encoder!r}; "
            f"{_nearest(config.encoder, architecture.encoders)}"
        )
    return architecture


def encoder_of(config: ModelConfig) -> str:
    """The encoder's name: `model.encoder`, or the model's first; for segformer its variant."""
    architecture = find_architecture(config)
    return config.encoder or (architecture.encoders[0] if architecture.encoders else f"mit_{config.variant}")


def model_title(config: ModelConfig) -> str:
    """For messages: SegFormer-B2, or unet with resnet50."""
    if config.name == "segformer":
        return f"SegFormer-{config.variant.upper()}"
    return f"{config.name} with {encoder_of(config)}"


def describe_model(config: ModelConfig) -> dict[str, str]:
    """What a model's folder says about its network."""
    return {"name": config.name, "encoder": encoder_of(config), "library": find_architecture(config).library}


def build_network(config: ModelConfig, num_classes: int, image_size: Size) -> SegmentationModel:
    """A model other than segformer, with random weights.

    Args:
        image_size: (height, width) that learnt positions are for.
    """
    module, _, function = find_architecture(config).builder.partition(":")
    build = getattr(importlib.import_module(module), function)
    model: SegmentationModel = build(encoder_of(config), num_classes, image_size, config.freeze_backbone)
    model.name = config.name
    return model


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
