"""The large parts of an encoder block, with backward passes that compute again what is cheap to compute.

Layer by layer, a block keeps about 19 values per token and channel. Here it keeps 8: what goes into the two branches,
queries, attended values, and the Mix-FFN's hidden map. Norms, the depthwise convolution and GELU are computed twice,
none of them a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _MixFfn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, eps: float, dtype: torch.dtype, norm_weight: Tensor, norm_bias: Tensor, *weights: Tensor
    ) -> Tensor:
        first, first_bias, kernel, kernel_bias, second, second_bias = (weight.to(dtype) for weight in weights)
        normed, mean, inverse_std = torch.native_layer_norm(maps, maps.shape[-1:], norm_weight, norm_bias, eps)
        hidden = functional.linear(normed.to(dtype), first, first_bias)
        mixed = functional.gelu(_depthwise(hidden, kernel, kernel_bias))
        ctx.save_for_backward(maps, mean, inverse_std, hidden, norm_weight, norm_bias, *weights)
        ctx.eps = eps
        return functional.linear(mixed, second, second_bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        maps, mean, inverse_std, hidden, norm_weight, norm_bias, *weights = ctx.saved_tensors
        dtype, grad = hidden.dtype, _rows(grads[0])
        first, _, kernel, kernel_bias, second, _ = (weight.to(dtype) for weight in weights)
        convolved = _depthwise(hidden, kernel, kernel_bias)
        of_second = grad.T @ _rows(functional.gelu(convolved))
        of_convolved = torch.ops.aten.gelu_backward((grad @ second).view(convolved.shape), convolved)
        del convolved
        of_hidden, of_kernel, of_kernel_bias = torch.ops.aten.convolution_backward(
            of_convolved.permute(0, 3, 1, 2),
            hidden.permute(0, 3, 1, 2),
            kernel,
            [len(kernel)],
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            len(kernel),
            [True, True, True],
        )
        del of_convolved
        of_hidden = _rows(of_hidden.permute(0, 2, 3, 1))
        normed = torch.native_layer_norm(maps, maps.shape[-1:], norm_weight, norm_bias, ctx.eps)[0].to(dtype)
        of_first = of_hidden.T @ _rows(normed)
        of_normed = (of_hidden @ first).view(maps.shape)
        of_maps, of_norm, of_norm_bias = _norm_backward(of_normed, maps, mean, inverse_std, norm_weight, norm_bias)
        of_weights = (of_first, of_hidden.sum(0), of_kernel, of_kernel_bias, of_second, grad.sum(0))
        cast = (own.to(weight.dtype) for own, weight in zip(of_weights, weights, strict=True))
        return of_maps, None, None, of_norm, of_norm_bias, *cast


def mix_ffn(maps: Tensor, norm: nn.LayerNorm, first: nn.Linear, conv: nn.Conv2d, second: nn.Linear) -> Tensor:
    """second(gelu(conv(first(norm(maps))))) with a depthwise 3 x 3 convolution (Xie et al. 2021, equation 3).

    Args:
        maps: (B, H, W, C).
    """
    weights = (first.weight, first.bias, conv.weight, conv.bias, second.weight, second.bias)
    dtype = arithmetic(maps)
    with torch.autocast(maps.device.type, enabled=False):
        result: Tensor = _MixFfn.apply(maps, norm.eps, dtype, *_norm_parameters(norm, maps), *weights)
    return result


class _ProjectAndReduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, eps: float, dtype: torch.dtype, norm_weight: Tensor, norm_bias: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, query_bias, kernel, kernel_bias = (weight.to(dtype) for weight in weights)
        normed, mean, inverse_std = torch.native_layer_norm(maps, maps.shape[-1:], norm_weight, norm_bias, eps)
        normed = normed.to(dtype)
        ctx.save_for_backward(maps, mean, inverse_std, norm_weight, norm_bias, *weights)
        ctx.eps, ctx.dtype = eps, dtype
        reduced = functional.linear(_patches(normed, kernel.shape[-1]), _as_matrix(kernel), kernel_bias)
        return functional.linear(normed, query, query_bias), reduced

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        maps, mean, inverse_std, norm_weight, norm_bias, *weights = ctx.saved_tensors
        dtype = ctx.dtype
        query, _, kernel, _ = (weight.to(dtype) for weight in weights)
        of_queries, of_reduced = (_rows(grad) for grad in grads)
        normed = torch.native_layer_norm(maps, maps.shape[-1:], norm_weight, norm_bias, ctx.eps)[0].to(dtype)
        of_query = of_queries.T @ _rows(normed)
        of_kernel = of_reduced.T @ _rows(_patches(normed, kernel.shape[-1]))
        of_normed = (of_queries @ query).view(maps.shape)
        _add_patches(of_normed, of_reduced @ _as_matrix(kernel), kernel.shape[-1])
        of_maps, of_norm, of_norm_bias = _norm_backward(of_normed, maps, mean, inverse_std, norm_weight, norm_bias)
        side, channels = kernel.shape[-1], maps.shape[-1]
        of_kernel = of_kernel.view(-1, side, side, channels).permute(0, 3, 1, 2)
        of_weights = (of_query, of_queries.sum(0), of_kernel, of_reduced.sum(0))
        cast = (own.to(weight.dtype) for own, weight in zip(of_weights, weights, strict=True))
        return of_maps, None, None, of_norm, of_norm_bias, *cast


def project_and_reduce(maps: Tensor, norm: nn.LayerNorm, query: nn.Linear, reduce: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """query(norm(maps)) and reduce(norm(maps)), where the convolution's stride is its kernel.

    Args:
        maps: (B, H, W, C).

    Returns:
        (B, H, W, C) and (B, H // k, W // k, C).
    """
    weights = (query.weight, query.bias, reduce.weight, reduce.bias)
    dtype = arithmetic(maps)
    with torch.autocast(maps.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _ProjectAndReduce.apply(
            maps, norm.eps, dtype, *_norm_parameters(norm, maps), *weights
        )
    return result


def _norm_parameters(norm: nn.LayerNorm, maps: Tensor) -> tuple[Tensor, Tensor]:
    """No narrower than the maps: under autocast a model in fp16 has norms that give fp32."""
    dtype = torch.promote_types(norm.weight.dtype, maps.dtype)
    return norm.weight.to(dtype), norm.bias.to(dtype)


def arithmetic(maps: Tensor) -> torch.dtype:
    """The type that layers compute in: autocast's where it is on, else that of the maps."""
    device = maps.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps.dtype


def _rows(maps: Tensor) -> Tensor:
    return maps.reshape(-1, maps.shape[-1])


def _depthwise(maps: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    convolved = functional.conv2d(maps.permute(0, 3, 1, 2), kernel, bias, padding=1, groups=len(kernel))
    return convolved.permute(0, 2, 3, 1).contiguous()


def _norm_backward(
    grad: Tensor, maps: Tensor, mean: Tensor, inverse_std: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        grad.to(maps.dtype), maps, maps.shape[-1:], mean, inverse_std, weight, bias, [True, True, True]
    )
    return grads


def _as_matrix(kernel: Tensor) -> Tensor:
    """(D, C, k, k) -> (D, k k C), in the order of `_patches`."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _patches(maps: Tensor, side: int) -> Tensor:
    """Squares of the map as rows: (B, H, W, C) -> (B, H // side, W // side, side side C)."""
    batch, height, width, channels = len(maps), maps.shape[1] // side, maps.shape[2] // side, maps.shape[3]
    squares = maps[:, : height * side, : width * side].reshape(batch, height, side, width, side, channels)
    return squares.transpose(2, 3).reshape(batch, height, width, -1)


def _add_patches(maps: Tensor, patches: Tensor, side: int) -> None:
    """Add rows to the squares that `_patches` took them from."""
    batch, height, width, channels = len(maps), maps.shape[1] // side, maps.shape[2] // side, maps.shape[3]
    squares = patches.view(batch, height, width, side, side, channels).transpose(2, 3)
    maps[:, : height * side, : width * side] += squares.reshape(batch, height * side, width * side, channels)
