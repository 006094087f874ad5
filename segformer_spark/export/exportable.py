"""Models as graphs that exporters can trace: no loops over bands, no choice by size.

SegFormer is written anew with the merged head (models/decode_head.py), batch norm folded into its projections. Tokens
are rows of a matrix, so that linear layers become matrix products with a bias (Gemm), which onnxruntime has as one
kernel, and maps keep their channels last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.segformer import SegFormer


def exportable(model: SegmentationModel, *, preprocessing: bool) -> nn.Module:
    """(B, 3, H, W) -> logits; sides are multiples of the model's `size_multiple`.

    Args:
        preprocessing: take uint8 RGB and normalise it, in place of normalised images.
    """
    graph = MergedSegFormer(model) if isinstance(model, SegFormer) else _Whole(model)
    return (_Normalizing(graph) if preprocessing else graph).eval()


class MergedSegFormer(nn.Module):
    """A SegFormer in evaluation mode, with weights of its own.

    Args:
        model: whose weights these are.
    """

    def __init__(self, model: SegFormer) -> None:
        super().__init__()
        head: Any = model.network.decode_head
        norm = head.batch_norm
        self.encoder = model.network.segformer
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        fuse = head.linear_fuse.weight.flatten(1).double() * scale[:, None]
        projections = [module.proj for module in head.linear_projections]
        # The head concatenates the coarsest level first.
        parts = fuse.chunk(len(projections), 1)[::-1]
        self.levels = nn.ParameterList(
            nn.Parameter((part @ one.weight.double()).float(), requires_grad=False)
            for part, one in zip(parts, projections, strict=True)
        )
        biases = torch.cat([one.bias for one in reversed(projections)]).double()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        self.bias = nn.Parameter((fuse @ biases + shift).float(), requires_grad=False)
        self.classifier = nn.Parameter(head.classifier.weight.flatten(1).detach().clone(), requires_grad=False)
        self.classifier_bias = nn.Parameter(head.classifier.bias.detach().clone(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C, ceil(H / 4), ceil(W / 4))."""
        batch, maps, found = images.shape[0], images, []
        for stage in self.encoder.stages:
            embedding = stage.patch_embeddings
            maps = embedding.proj(maps).permute(0, 2, 3, 1)
            _, height, width, channels = maps.shape
            tokens = embedding.layer_norm(maps.reshape(-1, channels))
            for block in stage.blocks:
                tokens = _transformed(tokens, block, (batch, height, width))
            tokens = stage.layer_norm(tokens)
            maps = tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)
            found.append((tokens, height, width))
        return self._decode(found, batch)

    def _decode(self, found: list[tuple[Tensor, int, int]], batch: int) -> Tensor:
        _, height, width = found[0]
        total: Tensor | None = None
        for (tokens, high, wide), weight in zip(found, self.levels, strict=True):
            level = functional.linear(tokens, weight, self.bias if total is None else None)
            level = level.view(batch, high, wide, -1).permute(0, 3, 1, 2)
            if total is None:
                total = level
            else:
                total = total + functional.interpolate(level, (height, width), mode="bilinear", align_corners=False)
        assert total is not None
        active = functional.relu(total).permute(0, 2, 3, 1).flatten(0, 2)
        logits = functional.linear(active, self.classifier, self.classifier_bias)
        return logits.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _transformed(tokens: Tensor, block: Any, shape: tuple[int, int, int]) -> Tensor:
    """An encoder block on tokens (B H W, C)."""
    batch, height, width = shape
    own, mlp, channels = block.attention, block.mlp, tokens.shape[-1]
    normed = reduced = block.layernorm_before(tokens)
    if own.sequence_reduction_ratio > 1:
        reduction = own.sequence_reduction
        maps = normed.view(batch, height, width, channels).permute(0, 3, 1, 2)
        reduced = reduction.sequence_reduction(maps).permute(0, 2, 3, 1).flatten(0, 2)
        reduced = reduction.layer_norm(reduced)
    heads = own.num_attention_heads
    queries, keys, values = (
        layer(source).view(batch, -1, heads, channels // heads).transpose(1, 2)
        for layer, source in ((own.q_proj, normed), (own.k_proj, reduced), (own.v_proj, reduced))
    )
    mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=own.scaling)
    tokens = tokens + own.o_proj(mixed.transpose(1, 2).reshape(-1, channels))
    hidden = mlp.fc1(block.layernorm_after(tokens)).view(batch, height, width, -1).permute(0, 3, 1, 2)
    hidden = mlp.dwconv.dwconv(hidden).permute(0, 2, 3, 1).flatten(0, 2)
    return tokens + mlp.fc2(functional.gelu(hidden))  # type: ignore[no-any-return]


class _Whole(nn.Module):
    """Any other model, without the padding that other sizes need."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model.classify(self.model.penultimate(self.model._encode(images)))
        return logits


class _Normalizing(nn.Module):
    """uint8 RGB (B, 3, H, W) in; the network sees it normalised as in training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images.to(torch.float32) - self.mean) / self.deviation)
        return logits
