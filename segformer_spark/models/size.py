"""Parameters and multiply-adds of models, from configurations alone: nothing is downloaded or run.

SegFormer's come from formulas, without torch; those of other models from torch's counters on the meta device
(models/counted_size.py), which agree with the formulas to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segformer_spark.config.image_size import Size, setting_of
from segformer_spark.config.schema import ModelConfig
from segformer_spark.config.variants import VARIANTS, Variant
from segformer_spark.models.registry import encoder_of

_STRIDES, _PATCHES, _REDUCTIONS, _MLP_RATIO, _CHANNELS = (4, 2, 2, 2), (7, 3, 3, 3), (8, 4, 2, 1), 4, 3
"""Of every variant (Xie et al. 2021, table 6 of the supplement)."""


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
        """Flat and JSON-ready, with millions and billions rounded."""
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
    """A variant's parameters and multiply-adds (`encoder_params`, `encoder_macs`, `head_macs`)."""
    sizes = VARIANTS[variant] if isinstance(variant, str) else variant
    encoder, head_params = encoder_params(sizes), _head_params(sizes, num_classes)
    in_encoder = encoder_macs(sizes, image_size)
    head, merged = (head_macs(sizes, num_classes, image_size, merged=merged) for merged in (False, True))
    return ModelSize(
        model_name=f"segformer-{variant if isinstance(variant, str) else 'custom'}",
        num_classes=num_classes,
        image_size=image_size,
        total_params=encoder + head_params,
        trainable_params=head_params if freeze_backbone else encoder + head_params,
        encoder_params=encoder,
        head_params=head_params,
        macs=in_encoder + head,
        macs_head=head,
        macs_merged=in_encoder + merged,
    )


def size_of(config: ModelConfig, num_classes: int, image_size: Size) -> ModelSize:
    """The size of any model of the registry.

    Raises:
        ConfigError: no such model or encoder.
    """
    if config.name == "segformer":
        sized = config.sizes if config.variant == "custom" else config.variant
        return model_size(sized, num_classes, image_size, freeze_backbone=config.freeze_backbone)
    from segformer_spark.models.counted_size import counted_size

    return counted_size(config, num_classes, image_size)


def model_name(config: ModelConfig) -> str:
    """segformer-b2, or the model's name with its encoder's."""
    if config.name == "segformer":
        return f"segformer-{config.variant}"
    encoder = encoder_of(config)
    return encoder if encoder.startswith(config.name) else f"{config.name}-{encoder}"


def encoder_params(sizes: Variant) -> int:
    """Parameters of the Mix Transformer: patch embeddings, blocks and norms of all stages."""
    total, channels_in = 0, _CHANNELS
    for stage, width in enumerate(sizes.hidden_sizes):
        ratio, hidden, norm = _REDUCTIONS[stage], _MLP_RATIO * width, 2 * width
        total += _PATCHES[stage] ** 2 * channels_in * width + width + norm
        reduction = ratio**2 * width * width + width + norm if ratio > 1 else 0
        attention = 4 * (width * width + width) + reduction
        mlp = width * hidden + hidden + 9 * hidden + hidden + hidden * width + width
        total += sizes.depths[stage] * (attention + mlp + 2 * norm) + norm
        channels_in = width
    return total


def _head_params(sizes: Variant, num_classes: int) -> int:
    wide = sizes.decoder_size
    projections = sum(width * wide + wide for width in sizes.hidden_sizes)
    fuse, norm = len(sizes.hidden_sizes) * wide * wide, 2 * wide
    return projections + fuse + norm + wide * num_classes + num_classes


def stage_sizes(image_size: Size) -> list[Size]:
    """(height, width) of each stage's map: a convolution with padding of half its kernel, ceil(side / stride)."""
    sizes, (height, width) = [], image_size
    for stride in _STRIDES:
        height, width = -(-height // stride), -(-width // stride)
        sizes.append((height, width))
    return sizes


def encoder_macs(sizes: Variant, image_size: Size) -> int:
    """Multiply-adds of convolutions, linear layers and attention's two matrix products (Xie et al. 2021, section 3.1).

    Norms, activations and additions do not count, as is usual.
    """
    total, channels_in = 0, _CHANNELS
    for stage, (high, wide) in enumerate(stage_sizes(image_size)):
        width, tokens = sizes.hidden_sizes[stage], high * wide
        ratio, hidden = _REDUCTIONS[stage], _MLP_RATIO * width
        total += tokens * _PATCHES[stage] ** 2 * channels_in * width
        keys = (high // ratio) * (wide // ratio)
        reduction = keys * ratio**2 * width * width if ratio > 1 else 0
        attention = 2 * tokens * width * width + 2 * keys * width * width + 2 * tokens * keys * width
        mlp = 2 * tokens * width * hidden + tokens * 9 * hidden
        total += sizes.depths[stage] * (reduction + attention + mlp)
        channels_in = width
    return total


def head_macs(sizes: Variant, num_classes: int, image_size: Size, *, merged: bool) -> int:
    """Multiply-adds of the decode head, as published or merged (models/decode_head.py); upsampling does not count."""
    wide = sizes.decoder_size
    areas = [rows * columns for rows, columns in stage_sizes(image_size)]
    finest = areas[0]
    projections = sum(area * width * wide for area, width in zip(areas, sizes.hidden_sizes, strict=True))
    if merged:
        fuse = sum(wide * wide * (width + 1) for width in sizes.hidden_sizes)  # the products F_i W_i and F_i b_i
    else:
        fuse = finest * len(areas) * wide * wide
    return projections + fuse + finest * wide * num_classes
