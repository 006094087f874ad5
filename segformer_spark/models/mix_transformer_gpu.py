"""The Mix Transformer's forward pass for GPUs: few kernels, few bytes, few dispatched operations.

What mix_transformer.py computes, with the parameters of a stage cast together, and with the residual sum and the norm
after it as one operation. What the backward pass needs is kept, not computed again: on a GPU that costs bytes. Maps are
their tokens (N, C), images one after the other and rows one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segformer_spark.kernels.add_norm import NORMS, fused_add_norm, fused_norm, plain_add_norm, plain_norm
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
from segformer_spark.models.stage_weights import StageCasting, StageWeights
from segformer_spark.ops.constants import device_constant

if TYPE_CHECKING:
    from segformer_spark.models.graphed_stages import GraphedStages

Branch = tuple[Tensor, Tensor | None]
"""What a linear layer gives, and the bias that is still to be added."""


@dataclass
class Layers:
    """The layers of a stage or a block, without its modules' own forward passes.

    Attributes:
        weights: parameters by name, in the type that they are used in.
        grid: images, rows and columns of the tokens.
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

    def without_bias(self, name: str, tokens: Tensor) -> Branch:
        """A linear layer whose bias the next operation adds, where it can."""
        weight, bias = self.both(name)
        return (functional.linear(tokens, weight), bias) if self.fused else (self.linear(name, tokens), None)

    def norm(self, module: nn.LayerNorm, name: str, tokens: Tensor) -> Tensor:
        return (fused_norm if self.fused else plain_norm)(tokens, *self.both(name), module.eps, self.dtype)

    def add_norm(
        self, module: nn.LayerNorm, name: str, tokens: Tensor, branch: Branch | None, scale: Tensor | None
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

    def mix(self, name: str, hidden: Branch) -> Tensor:
        """The depthwise convolution and GELU."""
        tokens, bias = hidden
        if bias is None:
            return plain_depthwise_gelu(tokens, *self.both(name), self.grid)
        return fused_depthwise_gelu(tokens, bias, *self.both(name), self.grid)


def encode(
    encoder: nn.Module,
    images: Tensor,
    blocks: Sequence[Block],
    kernels: Arithmetic,
    run_block: RunBlock | None = None,
    graphed: GraphedStages | None = None,
) -> tuple[Tensor, ...]:
    """(B, 3, H, W) -> four maps (B, H_i, W_i, C_i), finest first.

    Args:
        blocks: of all stages.
        run_block: `transform_block` as torch.compile made it.
        graphed: the stages as CUDA graphs, for the images that they were made for.
    """
    drop_rates = [block.drop_rate for block in blocks]
    dtype = arithmetic(images)
    with torch.autocast(images.device.type, enabled=False):
        maps, features = images.permute(0, 2, 3, 1).to(dtype), []
        scales = branch_scales(images, drop_rates) if encoder.training else None
        if graphed is not None and encoder.training and graphed.take(maps):
            return graphed(maps, scales)
        fused = runs_fused_encoder(blocks, kernels, images.device)
        left = iter(split_scales(scales, drop_rates))
        stages: Any = encoder.stages
        for stage in stages:
            own = [next(left) for _ in range(2 * len(stage.blocks))]
            maps = transform_stage(stage, maps, own, dtype, fused, run_block or transform_block)
            features.append(maps)
    return tuple(features)


def runs_fused_encoder(blocks: Sequence[Block], kernels: Arithmetic, device: torch.device) -> bool:
    """Whether operations of this package compute what they can."""
    # Dropout of hidden maps comes after the bias, and published models have none.
    fused = kernels == "gpu" and runs_fused((*NORMS, *DEPTHWISE), device)
    return fused and not any(block.drops_hidden for block in blocks)


def branch_scales(images: Tensor, drop_rates: Sequence[float]) -> Tensor | None:
    """Of both branches of every block (a row each), the factor of stochastic depth for every image: 0 or 1 / keep;
    None where all are kept.

    All are drawn at once (Huang et al. 2016, section 3).
    """
    keep = [1 - rate for rate in drop_rates for _ in range(2)]
    if min(keep) == 1:
        return None
    drawn = torch.rand(len(keep), len(images), device=images.device)
    probability = _column(tuple(keep), images.device)
    return drawn.add_(probability).floor_().div_(probability)


def split_scales(scales: Tensor | None, drop_rates: Sequence[float]) -> list[Tensor | None]:
    """The rows of `branch_scales`; None for a branch that is always kept."""
    if scales is None:
        return [None for _ in range(2 * len(drop_rates))]
    rates = (rate for rate in drop_rates for _ in range(2))
    return [None if rate == 0 else own for rate, own in zip(rates, scales.unbind(), strict=True)]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A column of values, copied to the device once."""
    return _made_column(values, device)


@device_constant
def _made_column(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None]


def transform_stage(
    stage: nn.Module,
    maps: Tensor,
    scales: Sequence[Tensor | None],
    dtype: torch.dtype,
    fused: bool,
    run_block: RunBlock,
) -> Tensor:
    """A stage's patch embedding, blocks and norm.

    Args:
        maps: (B, H, W, C).
        scales: of both branches of every block, stochastic depth's factors (B,).
    """
    casting: Any = stage.casting
    weights: StageWeights = casting[fused].weights(dtype)
    own = Layers(weights.outer, (0, 0, 0), dtype, fused)
    embedding: Any = stage.patch_embeddings
    tokens, own.grid = own.convolve(embedding.proj, "patch_embeddings.proj", maps)
    tokens = own.norm(embedding.layer_norm, "patch_embeddings.layer_norm", tokens)
    branch: Branch | None = None
    scale = None
    blocks: Any = stage.blocks
    for block, parameters, of_attention, of_mix in zip(blocks, weights.blocks, scales[::2], scales[1::2], strict=True):
        given = (block, Layers(parameters, own.grid, dtype, fused), tokens, branch, scale, of_attention)
        if block.recompute and torch.is_grad_enabled():
            tokens, branch = checkpoint(run_block, *given, use_reentrant=False)
        else:
            tokens, branch = run_block(*given)
        scale = of_mix
    last: Any = stage.layer_norm
    return own.add_norm(last, "layer_norm", tokens, branch, scale)[1].view(*own.grid, -1)


def prepare(encoder: nn.Module) -> None:
    """Look at the parameters of every stage, which keep their names and shapes from here on."""
    stages: Any = encoder.stages
    for stage in stages:
        stage.casting = {fused: StageCasting(stage, fused=fused) for fused in (False, True)}


def transform_block(
    block: Block,
    own: Layers,
    tokens: Tensor,
    branch: Branch | None,
    scale: Tensor | None,
    of_attention: Tensor | None,
) -> tuple[Tensor, Branch]:
    """The residual stream before the Mix-FFN's sum, and the Mix-FFN's branch: the next norm adds them.

    Args:
        branch: that of the block before, which `scale` multiplies.
    """
    tokens, normed = own.add_norm(block.layernorm_before, "layernorm_before", tokens, branch, scale)
    attended = _attend(block, own, normed)
    tokens, normed = own.add_norm(block.layernorm_after, "layernorm_after", tokens, attended, of_attention)
    mixed = own.mix("mlp.dwconv.dwconv", own.without_bias("mlp.fc1", normed))
    mlp: Any = block.mlp
    mixed = functional.dropout(mixed, mlp.dropout.p, block.training) if mlp.dropout.p else mixed
    values, bias = own.without_bias("mlp.fc2", mixed)
    return tokens, (block.drop_hidden(values), bias)


RunBlock = Callable[
    [Block, Layers, Tensor, Branch | None, Tensor | None, Tensor | None],
    tuple[Tensor, Branch],
]


def _attend(block: Block, own: Layers, normed: Tensor) -> Branch:
    module: Any = block.attention
    reduced = normed
    if module.sequence_reduction_ratio > 1:
        reduction = module.sequence_reduction
        name = "attention.sequence_reduction"
        conv = reduction.sequence_reduction
        reduced, _ = own.convolve(conv, f"{name}.sequence_reduction", normed.view(*own.grid, -1))
        reduced = own.norm(reduction.layer_norm, f"{name}.layer_norm", reduced)
    heads = (module.num_attention_heads, module.head_dim)
    queries = own.linear("attention.q_proj", normed).view(own.grid[0], -1, *heads).transpose(1, 2)
    both = own.linear("attention.kv_proj", reduced).view(own.grid[0], -1, 2, *heads)
    keys, values = (one.transpose(1, 2) for one in both.unbind(2))
    rate = module.attention_dropout if block.training else 0.0
    mixed = functional.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, scale=module.scaling)
    attended, bias = own.without_bias("attention.o_proj", mixed.transpose(1, 2).reshape(normed.shape))
    return block.drop_hidden(attended), bias
