"""The Mix Transformer's forward pass on channels-last maps (Xie et al. 2021, section 3.1).

The modules, their names and their weights are transformers' own. A map (B, H, W, C) is the sequence of its tokens and a
channels-last image at the same time, so that no layer copies to get from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segformer_spark.models.recomputed import mix_ffn, project_and_reduce


class Block(nn.Module):
    """An encoder block: attention over reduced keys, then the Mix-FFN, each on a residual branch.

    Takes over the submodules of transformers' SegformerLayer under their own names.

    Attributes:
        recompute: keep only the input, and compute the rest again in the backward pass.
        run: `transform`, or what torch.compile made of it.
    """

    layernorm_before: nn.LayerNorm
    layernorm_after: nn.LayerNorm
    attention: nn.Module
    mlp: nn.Module

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.recompute = False
        self.run: Callable[[Block, Tensor], Tensor] = Block.transform
        self.drop_rate = float(getattr(layer.drop_path, "drop_prob", 0.0))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = checkpoint(self.run, self, maps, use_reentrant=False)
            return result
        return self.run(self, maps)

    def transform(self, maps: Tensor) -> Tensor:
        """`forward`, keeping what the backward pass needs."""
        maps = self._add(maps, self._attend(maps))
        return self._add(maps, self._mix(maps))

    def _add(self, maps: Tensor, branch: Tensor) -> Tensor:
        """The residual sum under stochastic depth: a sample's branch counts 1 / keep times, or not at all."""
        if not self.training or self.drop_rate == 0:
            return maps + branch
        keep = 1 - self.drop_rate
        drawn = torch.rand(len(maps), 1, 1, 1, dtype=branch.dtype, device=maps.device)
        return torch.addcmul(maps, branch, torch.floor(drawn + keep).div_(keep))

    def _attend(self, maps: Tensor) -> Tensor:
        own: Any = self.attention
        batch, height, width, channels = maps.shape
        if own.sequence_reduction_ratio > 1:
            reduction = own.sequence_reduction
            queries, reduced = project_and_reduce(maps, self.layernorm_before, own.q_proj, reduction.sequence_reduction)
            reduced = reduction.layer_norm(reduced)
        else:
            reduced = self.layernorm_before(maps)
            queries = own.q_proj(reduced)
        queries, keys, values = (
            source.view(batch, -1, own.num_attention_heads, own.head_dim).transpose(1, 2)
            for source in (queries, own.k_proj(reduced), own.v_proj(reduced))
        )
        rate = own.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, scale=own.scaling)
        mixed = own.o_proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))
        return self.drop_hidden(mixed)

    def _mix(self, maps: Tensor) -> Tensor:
        own: Any = self.mlp
        if not (own.dropout.p and self.training):
            return mix_ffn(maps, self.layernorm_after, own.fc1, own.dwconv.dwconv, own.fc2)
        hidden = channels_last_conv(own.fc1(self.layernorm_after(maps)), own.dwconv.dwconv)
        return self.drop_hidden(own.fc2(self.drop_hidden(functional.gelu(hidden))))

    @property
    def drops_hidden(self) -> bool:
        """Whether `drop_hidden` or the Mix-FFN's own dropout leaves something out."""
        hidden: Any = self.hidden_dropout
        own: Any = self.mlp
        return bool(hidden.p or own.dropout.p)

    def drop_hidden(self, maps: Tensor) -> Tensor:
        """transformers' hidden dropout, off in all published models."""
        dropout: Any = self.hidden_dropout
        return functional.dropout(maps, dropout.p, self.training) if dropout.p else maps


def take_over_blocks(encoder: nn.Module) -> None:
    """Put a Block in the place of every SegformerLayer of transformers' SegformerModel."""
    stages: Any = encoder.stages
    for stage in stages:
        stage.blocks = nn.ModuleList(Block(layer) for layer in stage.blocks)


def encode(encoder: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """(B, 3, H, W) -> four maps (B, H_i, W_i, C_i), finest first."""
    maps, features = images.permute(0, 2, 3, 1), []
    stages: Any = encoder.stages
    for stage in stages:
        embedding = stage.patch_embeddings
        maps = embedding.layer_norm(channels_last_conv(maps, embedding.proj))
        for block in stage.blocks:
            maps = block(maps)
        maps = stage.layer_norm(maps)
        features.append(maps)
    return tuple(features)


def channels_last_conv(maps: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution on (B, H, W, C); the result has that order, too."""
    return conv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
