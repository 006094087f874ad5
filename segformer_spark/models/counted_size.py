"""Parameters and multiply-adds of models that torch counts on the meta device."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import ModelConfig
from segformer_spark.models.registry import build_network
from segformer_spark.models.size import ModelSize, model_name


def counted_size(config: ModelConfig, num_classes: int, image_size: Size) -> ModelSize:
    """The size of a model other than segformer.

    Raises:
        ConfigError: no such model or encoder.
    """
    with torch.device("meta"):
        model = build_network(config, num_classes, image_size).eval()
    model.to("meta")  # constants that a library makes from numpy
    encoder = sum(p.numel() for p in model.encoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    whole, in_encoder = _counted(model, image_size), _counted(model, image_size, only_features=True)
    return ModelSize(
        model_name=model_name(config),
        num_classes=num_classes,
        image_size=image_size,
        total_params=total,
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        encoder_params=encoder,
        head_params=total - encoder,
        macs=whole,
        macs_head=whole - in_encoder,
        macs_merged=whole,
    )


def _counted(model: nn.Module, image_size: Size, **options: bool) -> int:
    """Multiply-adds of one image; torch counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *image_size, device="meta"), **options)
    return int(counter.get_total_flops()) // 2
