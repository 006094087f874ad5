"""The Mix Transformer's forward pass for GPUs: few kernels, few bytes, few dispatched operations.

What mix_transformer.py computes, with the parameters of a stage cast together, and with the residual sum and the norm
after it as one operation. What the backward pass needs is kept, not computed again: on a GPU that costs bytes. Maps are
their tokens (N, C), images one after the other and rows one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segformer_spark.kernels.add_norm import NORMS, fused_add_norm, fused_norm, plain_add_norm, plain_norm
from segformer_spark.kernels.cast import Stacks, cast_together
from segformer_spark.kernels.depthwise_gelu import (
    DEPTHWISE,
    Grid,
    fused_depthwise_gelu,
    plain_depthwise_gelu,
)
from segformer_spark.kernels.registry import runs_fused
from segformer_spark.kernels.select import Arithmetic
from segformer_spark.models.mix_transformer import Block
from segformer_spark.models.recomputed import arithmetic
from segformer_spark.ops.constants import device_constant

_Branch = tuple[Tensor, Tensor | None]
"""What a linear layer gives, and the bias that is still to be added."""


@dataclass
class _Stage:
    """What the blocks of a stage share.

    Attributes:
        weights: its parameters by name, in the type that they are used in.
        dtype: of the layers.
        fused: whether operations of this package compute what they can.
    """

    weights: Mapping[str, Tensor]
    grid: Grid
    dtype: torch.dtype
    fused: bool

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer."""
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def linear(self, name: str, tokens: Tensor) -> Tensor:
        return functional.linear(tokens, *self.both(name))

    def without_bias(self, name: str, tokens: Tensor) -> _Branch:
        """A linear layer whose bias the next operation adds, where it can."""
        weight, bias = self.both(name)
        return (functional.linear(tokens, weight), bias) if self.fused else (self.linear(name, tokens), None)

    def norm(self, module: nn.LayerNorm, name: str, tokens: Tensor) -> Tensor:
        return (fused_norm if self.fused else plain_norm)(tokens, *self.both(name), module.eps, self.dtype)

    def add_norm(
        self, module: nn.LayerNorm, name: str, tokens: Tensor, branch: _Branch | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after `branch`, and its norm."""
        if branch is None:
            return tokens, self.norm(module, name, tokens)
        values, bias = branch
        if bias is None:
            return plain_add_norm(tokens, values, scale, *self.both(name), module.eps)
        return fused_add_norm(tokens, values, bias, scale, *self.both(name), module.eps)

    def convolve(self, conv: nn.Conv2d, name: str, maps: Tensor) -> tuple[Tensor, Grid]:
        """A convolution of maps (B, H, W, C): tokens and their grid."""
        convolved = functional.conv2d(maps.permute(0, 3, 1, 2), *self.both(name), conv.stride, conv.padding)
        batch, channels, height, width = convolved.shape
        return convolved.permute(0, 2, 3, 1).reshape(-1, channels), (batch, height, width)

    def mix(self, name: str, hidden: _Branch) -> Tensor:
        """The depthwise convolution and GELU."""
        tokens, bias = hidden
        if bias is None:
            return plain_depthwise_gelu(tokens, *self.both(name), self.grid)
        return fused_depthwise_gelu(tokens, bias, *self.both(name), self.grid)


def encode(encoder: nn.Module, images: Tensor, blocks: Sequence[Block], kernels: Arithmetic) -> tuple[Tensor, ...]:
    """(B, 3, H, W) -> four maps (B, H_i, W_i, C_i), finest first.

    Args:
        blocks: of all stages.
    """
    # Dropout of hidden maps comes after the bias, and published models have none.
    fused = kernels == "gpu" and runs_fused((*NORMS, *DEPTHWISE), images.device)
    fused = fused and not any(block.drops_hidden for block in blocks)
    drop_rates = [block.drop_rate for block in blocks]
    dtype = arithmetic(images)
    with torch.autocast(images.device.type, enabled=False):
        maps, features = images.permute(0, 2, 3, 1).to(dtype), []
        scales = iter(_branch_scales(images, drop_rates) if encoder.training else [None] * 2 * len(drop_rates))
        stages: Any = encoder.stages
        for stage in stages:
            maps = _transform(stage, maps, [(next(scales), next(scales)) for _ in stage.blocks], dtype, fused)
            features.append(maps)
    return tuple(features)


def _branch_scales(images: Tensor, drop_rates: Sequence[float]) -> Sequence[Tensor | None]:
    """Of both branches of every block, the factor (B,) of stochastic depth: 0 or 1 / keep; None where all are kept.

    All are drawn at once (Huang et al. 2016, section 3).
    """
    keep = [1 - rate for rate in drop_rates for _ in range(2)]
    if min(keep) == 1:
        return [None] * len(keep)
    drawn = torch.rand(len(keep), len(images), device=images.device)
    probability = _column(tuple(keep), images.device)
    scales = drawn.add_(probability).floor_().div_(probability)
    return [None if share == 1 else own for share, own in zip(keep, scales.unbind(), strict=True)]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A column of values, copied to the device once."""
    return _made_column(values, device)


@device_constant
def _made_column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None]


def _transform(
    stage: nn.Module,
    maps: Tensor,
    scales: Sequence[tuple[Tensor | None, Tensor | None]],
    dtype: torch.dtype,
    fused: bool,
) -> Tensor:
    casting: Any = stage.casting
    own = _Stage(casting[fused].weights(dtype), (0, 0, 0), dtype, fused)
    embedding: Any = stage.patch_embeddings
    tokens, own.grid = own.convolve(embedding.proj, "patch_embeddings.proj", maps)
    tokens = own.norm(embedding.layer_norm, "patch_embeddings.layer_norm", tokens)
    branch: _Branch | None = None
    scale = None
    blocks: Any = stage.blocks
    for number, (block, (of_attention, of_mix)) in enumerate(zip(blocks, scales, strict=True)):
        given = (block, own, f"blocks.{number}.", tokens, branch, scale, of_attention)
        if block.recompute and torch.is_grad_enabled():
            tokens, branch = checkpoint(_block, *given, use_reentrant=False)
        else:
            tokens, branch = _block(*given)
        scale = of_mix
    last: Any = stage.layer_norm
    return own.add_norm(last, "layer_norm", tokens, branch, scale)[1].view(*own.grid, -1)


_KEPT_BY_FUSED = re.compile(r"norm\w*\.\w+$|dwconv\.\w+$|(o_proj|fc1|fc2)\.bias$")
"""Parameters that operations of this package take in fp32."""

_KEYS_OR_VALUES = re.compile(r"\.[kv]_proj\.")
"""Two layers of the same maps, computed as one."""


class _Casting:
    """How a stage's parameters become those that its layers use, worked out once: names are slow to find."""

    def __init__(self, stage: nn.Module, fused: bool) -> None:
        groups: dict[str, list[tuple[nn.Module, str]]] = {}
        self._kept: dict[str, tuple[nn.Module, str]] = {}
        for path, module in stage.named_modules():
            for leaf in module._parameters:
                name = f"{path}.{leaf}"
                if fused and _KEPT_BY_FUSED.search(name):
                    self._kept[name] = (module, leaf)
                else:
                    groups.setdefault(_KEYS_OR_VALUES.sub(".kv_proj.", name), []).append((module, leaf))
        self._names = list(groups)
        self._owners = [owner for group in groups.values() for owner in group]
        self._stacks = Stacks([[getattr(*owner).shape for owner in group] for group in groups.values()])

    def weights(self, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Parameters by name, in `dtype` or as they are kept."""
        kept = {name: getattr(*owner) for name, owner in self._kept.items()}
        wide = {name: value.float() if value.itemsize < 4 else value for name, value in kept.items()}
        given = [getattr(*owner) for owner in self._owners]
        return wide | dict(zip(self._names, cast_together(given, self._stacks, dtype), strict=True))


def prepare(encoder: nn.Module) -> None:
    """Look at the parameters of every stage, which keep their names and shapes from here on."""
    stages: Any = encoder.stages
    for stage in stages:
        stage.casting = {fused: _Casting(stage, fused) for fused in (False, True)}


def _block(
    block: Block,
    own: _Stage,
    prefix: str,
    tokens: Tensor,
    branch: _Branch | None,
    scale: Tensor | None,
    of_attention: Tensor | None,
) -> tuple[Tensor, _Branch]:
    """The residual stream before the Mix-FFN's sum, and the Mix-FFN's branch: the next norm adds them."""
    tokens, normed = own.add_norm(block.layernorm_before, f"{prefix}layernorm_before", tokens, branch, scale)
    attended = _attend(block, own, f"{prefix}attention.", normed)
    tokens, normed = own.add_norm(block.layernorm_after, f"{prefix}layernorm_after", tokens, attended, of_attention)
    mixed = own.mix(f"{prefix}mlp.dwconv.dwconv", own.without_bias(f"{prefix}mlp.fc1", normed))
    mlp: Any = block.mlp
    mixed = functional.dropout(mixed, mlp.dropout.p, block.training) if mlp.dropout.p else mixed
    values, bias = own.without_bias(f"{prefix}mlp.fc2", mixed)
    return tokens, (block.drop_hidden(values), bias)


def _attend(block: Block, own: _Stage, prefix: str, normed: Tensor) -> _Branch:
    module: Any = block.attention
    reduced = normed
    if module.sequence_reduction_ratio > 1:
        reduction = module.sequence_reduction
        name = f"{prefix}sequence_reduction."
        conv = reduction.sequence_reduction
        reduced, _ = own.convolve(conv, f"{name}sequence_reduction", normed.view(*own.grid, -1))
        reduced = own.norm(reduction.layer_norm, f"{name}layer_norm", reduced)
    heads = (module.num_attention_heads, module.head_dim)
    queries = own.linear(f"{prefix}q_proj", normed).view(own.grid[0], -1, *heads).transpose(1, 2)
    both = own.linear(f"{prefix}kv_proj", reduced).view(own.grid[0], -1, 2, *heads)
    keys, values = (one.transpose(1, 2) for one in both.unbind(2))
    rate = module.attention_dropout if block.training else 0.0
    mixed = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, scale=module.scaling)
    attended, bias = own.without_bias(f"{prefix}o_proj", mixed.transpose(1, 2).reshape(normed.shape))
    return block.drop_hidden(attended), bias
