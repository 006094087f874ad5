"""Parameters and multiply-adds of SegFormer, from its configuration alone: nothing is downloaded or run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segformer_spark.models.segformer import VARIANTS, segformer_config
from segformer_spark.run.figures import new_figure, save_figure


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Attributes:
        total_params, trainable_params, encoder_params, head_params: without buffers.
        macs: multiply-adds of one image at `image_size`, with the decode head as published.
        macs_head: the part of it in the decode head.
        macs_merged: multiply-adds with the merged head, which this package runs.
    """

    model_name: str
    num_classes: int
    image_size: int
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
            "total_params_m": round(self.total_params / 1e6, 2),
            "macs_g": round(self.macs / 1e9, 2),
            "macs_merged_g": round(self.macs_merged / 1e9, 2),
        }


def model_size(variant: str, num_classes: int, image_size: int) -> ModelSize:
    """Count a variant's parameters (built on the meta device) and its multiply-adds (`encoder_macs`, `head_macs`)."""
    config = segformer_config(variant, [str(index) for index in range(num_classes)])
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(config)
    encoder = sum(p.numel() for p in network.segformer.parameters())
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    in_encoder = encoder_macs(config, image_size)
    head, merged = head_macs(config, image_size, merged=False), head_macs(config, image_size, merged=True)
    return ModelSize(
        model_name=f"segformer-{variant}",
        num_classes=num_classes,
        image_size=image_size,
        total_params=total,
        trainable_params=trainable,
        encoder_params=encoder,
        head_params=total - encoder,
        macs=in_encoder + head,
        macs_head=head,
        macs_merged=in_encoder + merged,
    )


def all_sizes(num_classes: int, image_size: int, variants: Sequence[str] = tuple(VARIANTS)) -> list[ModelSize]:
    """The sizes of the variants, in their order."""
    return [model_size(variant, num_classes, image_size) for variant in variants]


def stage_sides(config: SegformerConfig, image_size: int) -> list[int]:
    """Side of each stage's map: a convolution with padding of half its kernel, ceil(side / stride)."""
    sides, side = [], image_size
    for stride in config.strides:
        side = -(-side // stride)
        sides.append(side)
    return sides


def encoder_macs(config: SegformerConfig, image_size: int) -> int:
    """Multiply-adds of convolutions, linear layers and attention's two matrix products (Xie et al. 2021, section 3.1).

    Norms, activations and additions do not count, as is usual.
    """
    total, channels_in = 0, config.num_channels
    for stage, side in enumerate(stage_sides(config, image_size)):
        width, tokens = config.hidden_sizes[stage], side * side
        ratio, hidden = config.sr_ratios[stage], config.mlp_ratios[stage] * config.hidden_sizes[stage]
        total += tokens * config.patch_sizes[stage] ** 2 * channels_in * width
        keys = (side // ratio) ** 2
        reduction = keys * ratio**2 * width * width if ratio > 1 else 0
        attention = 2 * tokens * width * width + 2 * keys * width * width + 2 * tokens * keys * width
        mlp = 2 * tokens * width * hidden + tokens * 9 * hidden
        total += config.depths[stage] * (reduction + attention + mlp)
        channels_in = width
    return int(total)


def head_macs(config: SegformerConfig, image_size: int, *, merged: bool) -> int:
    """Multiply-adds of the decode head, as published or merged (models/decode_head.py); upsampling does not count."""
    wide, sides = config.decoder_hidden_size, stage_sides(config, image_size)
    finest = sides[0] ** 2
    projections = sum(side * side * width * wide for side, width in zip(sides, config.hidden_sizes, strict=True))
    if merged:
        fuse = sum(wide * wide * (width + 1) for width in config.hidden_sizes)  # the products F_i W_i and F_i b_i
    else:
        fuse = finest * len(sides) * wide * wide
    return int(projections + fuse + finest * wide * config.num_labels)


def size_table(sizes: Sequence[ModelSize]) -> list[str]:
    """Aligned lines with a header; multiply-adds in thousands of millions (the papers' "GFLOPs")."""
    first = sizes[0]
    lines = [
        f"{first.num_classes} classes, {first.image_size} x {first.image_size} pixels",
        f"{'model':<14}{'parameters':>13}{'encoder':>13}{'head':>12}"
        f"{'G multiply-adds':>17}{'merged head':>13}{'ratio':>7}",
    ]
    for size in sizes:
        lines.append(
            f"{size.model_name:<14}{size.total_params:>13,}{size.encoder_params:>13,}{size.head_params:>12,}"
            f"{size.macs / 1e9:>17.1f}{size.macs_merged / 1e9:>13.1f}{size.macs / size.macs_merged:>7.2f}"
        )
    return lines


def draw_sizes(sizes: Sequence[ModelSize], path: Path) -> None:
    """Parameters and multiply-adds as bars, encoder and head apart, beside the merged head."""
    figure = new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    names = [size.model_name.removeprefix("segformer-").upper() for size in sizes]
    places = range(len(sizes))
    left.bar(places, [size.encoder_params / 1e6 for size in sizes], label="encoder")
    left.bar(
        places,
        [size.head_params / 1e6 for size in sizes],
        bottom=[size.encoder_params / 1e6 for size in sizes],
        label="decode head",
    )
    left.set(title=f"parameters, {sizes[0].num_classes} classes", ylabel="millions")
    encoder = [(size.macs - size.macs_head) / 1e9 for size in sizes]
    right.bar([p - 0.2 for p in places], encoder, 0.38, color="tab:blue", label="encoder")
    right.bar(
        [p - 0.2 for p in places],
        [size.macs_head / 1e9 for size in sizes],
        0.38,
        bottom=encoder,
        color="tab:orange",
        label="head as published",
    )
    right.bar([p + 0.2 for p in places], encoder, 0.38, color="tab:blue")
    merged = [size.macs_merged / 1e9 - base for size, base in zip(sizes, encoder, strict=True)]
    right.bar([p + 0.2 for p in places], merged, 0.38, bottom=encoder, color="tab:green", label="merged head")
    right.set(title=f"multiply-adds at {sizes[0].image_size} px", ylabel="thousand millions")
    for axis in (left, right):
        axis.set_xticks(list(places), names)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize="small")
    save_figure(figure, path)
