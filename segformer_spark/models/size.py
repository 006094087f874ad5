"""Parameters and multiply-adds of models, from configurations alone: nothing is downloaded or run.

SegFormer's come from formulas; those of other models from torch's counter on the meta device, which agrees with the
formulas to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segformer_spark.config.image_size import Size, setting_of
from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.variants import Variant
from segformer_spark.models.registry import build_network, encoder_of
from segformer_spark.models.segformer import segformer_config


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Attributes:
        total_params, trainable_params, encoder_params, head_params: without buffers.
        image_size: (height, width) in pixels.
        macs: multiply-adds of one image of that size, with the decode head as published.
        macs_head: the part of it in the decode head.
        macs_merged: multiply-adds as this package runs it: with SegFormer's merged head.
    """

    model_name: str
    num_classes: int
    image_size: Size
    total_params: int
    trainable_params: int
    encoder_params: int
    head_params: int
    macs: int
    macs_head: int
    macs_merged: int

    def row(self) -> dict[str, Any]:
        """Flat and JSON-ready, with millions and thousands of millions rounded."""
        return {
            **self.__dict__,
            "image_size": setting_of(self.image_size),
            "total_params_m": round(self.total_params / 1e6, 2),
            "macs_g": round(self.macs / 1e9, 2),
            "macs_merged_g": round(self.macs_merged / 1e9, 2),
        }


def model_size(
    variant: str | Variant, num_classes: int, image_size: Size, *, freeze_backbone: bool = False
) -> ModelSize:
    """Count a variant's parameters (built on the meta device) and its multiply-adds (`encoder_macs`, `head_macs`)."""
    config = segformer_config(variant, [str(index) for index in range(num_classes)])
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(config)
    encoder = sum(p.numel() for p in network.segformer.parameters())
    total = sum(p.numel() for p in network.parameters())
    in_encoder = encoder_macs(config, image_size)
    head, merged = head_macs(config, image_size, merged=False), head_macs(config, image_size, merged=True)
    return ModelSize(
        model_name=f"segformer-{variant if isinstance(variant, str) else 'custom'}",
        num_classes=num_classes,
        image_size=image_size,
        total_params=total,
        trainable_params=total - encoder if freeze_backbone else total,
        encoder_params=encoder,
        head_params=total - encoder,
        macs=in_encoder + head,
        macs_head=head,
        macs_merged=in_encoder + merged,
    )


def size_of(config: ModelConfig, num_classes: int, image_size: Size) -> ModelSize:
    """The size of any model of the registry.

    Raises:
        ConfigError: no such model or encoder.
    """
    name = model_name(config)
    if config.name == "segformer":
        sized = config.sizes if config.variant == "custom" else config.variant
        return model_size(sized, num_classes, image_size, freeze_backbone=config.freeze_backbone)
    with torch.device("meta"):
        model = build_network(config, num_classes, image_size).eval()
    model.to("meta")  # constants that a library makes from numpy
    encoder = sum(p.numel() for p in model.encoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    whole, in_encoder = _counted(model, image_size), _counted(model, image_size, only_features=True)
    return ModelSize(
        model_name=name,
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


def model_name(config: ModelConfig) -> str:
    """segformer-b2, or the model's name with its encoder's."""
    if config.name == "segformer":
        return f"segformer-{config.variant}"
    encoder = encoder_of(config)
    return encoder if encoder.startswith(config.name) else f"{config.name}-{encoder}"


def _counted(model: nn.Module, image_size: Size, **options: bool) -> int:
    """Multiply-adds of one image; torch counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *image_size, device="meta"), **options)
    return int(counter.get_total_flops()) // 2


def stage_sizes(config: SegformerConfig, image_size: Size) -> list[Size]:
    """(height, width) of each stage's map: a convolution with padding of half its kernel, ceil(side / stride)."""
    sizes, (height, width) = [], image_size
    for stride in config.strides:
        height, width = -(-height // stride), -(-width // stride)
        sizes.append((height, width))
    return sizes


def encoder_macs(config: SegformerConfig, image_size: Size) -> int:
    """Multiply-adds of convolutions, linear layers and attention's two matrix products (Xie et al. 2021, section 3.1).

    Norms, activations and additions do not count, as is usual.
    """
    total, channels_in = 0, config.num_channels
    for stage, (high, wide) in enumerate(stage_sizes(config, image_size)):
        width, tokens = config.hidden_sizes[stage], high * wide
        ratio, hidden = config.sr_ratios[stage], config.mlp_ratios[stage] * config.hidden_sizes[stage]
        total += tokens * config.patch_sizes[stage] ** 2 * channels_in * width
        keys = (high // ratio) * (wide // ratio)
        reduction = keys * ratio**2 * width * width if ratio > 1 else 0
        attention = 2 * tokens * width * width + 2 * keys * width * width + 2 * tokens * keys * width
        mlp = 2 * tokens * width * hidden + tokens * 9 * hidden
        total += config.depths[stage] * (reduction + attention + mlp)
        channels_in = width
    return int(total)


def head_macs(config: SegformerConfig, image_size: Size, *, merged: bool) -> int:
    """Multiply-adds of the decode head, as published or merged (models/decode_head.py); upsampling does not count."""
    wide = config.decoder_hidden_size
    areas = [rows * columns for rows, columns in stage_sizes(config, image_size)]
    finest = areas[0]
    projections = sum(area * width * wide for area, width in zip(areas, config.hidden_sizes, strict=True))
    if merged:
        fuse = sum(wide * wide * (width + 1) for width in config.hidden_sizes)  # the products F_i W_i and F_i b_i
    else:
        fuse = finest * len(areas) * wide * wide
    return int(projections + fuse + finest * wide * config.num_labels)
