"""The whole decode head in inference: from the levels to logits, without the widest map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.merge_levels import add_enlarged, enlarged, projected
from segformer_spark.kernels.registry import dot, dot_options, jit, register, tl

_PIXELS = 32


@jit
def _kernel(  # type: ignore[no-untyped-def]
    finest, weight, second, third, fourth, classifier, bias, logits, H, W, C, D, K, h2, w2, h3, w3, h4, w4,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr, CLASSES: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    block, line = tl.program_id(0), tl.program_id(1)
    b, y = (line // H).to(tl.int64), line % H
    x = block * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, CLASSES)
    line_start = tl.cast(line, tl.int64) * W
    total = tl.zeros([PIXELS, CLASSES], tl.float32)
    for start in range(0, D, CHANNELS):
        d = start + tl.arange(0, CHANNELS)
        known = (x < W)[:, None] & (d < D)[None, :]
        part = tl.zeros([PIXELS, CHANNELS], tl.float32)
        for first in range(0, C, INNER):
            c = first + tl.arange(0, INNER)
            maps = tl.load(
                finest + line_start * C + x[:, None] * C + c[None, :],
                mask=(x < W)[:, None] & (c < C)[None, :],
                other=0.0,
            )
            own = tl.load(weight + d[None, :] * C + c[:, None], mask=(c < C)[:, None] & (d < D)[None, :], other=0.0)
            part = dot(maps, own, part, PRECISION, WIDEN)
        part += enlarged(second, b, y, x, d, known, h2, w2, H, W, D)
        part += enlarged(third, b, y, x, d, known, h3, w3, H, W, D)
        part += enlarged(fourth, b, y, x, d, known, h4, w4, H, W, D)
        last = tl.load(classifier + k[None, :] * D + d[:, None], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0)
        total = dot(tl.maximum(part, 0.0).to(last.dtype), last, total, PRECISION, WIDEN)
    total += tl.load(bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    known = (x < W)[:, None] & (k < K)[None, :]
    tl.store(logits + line_start * K + x[:, None] * K + k[None, :], total, mask=known)


def tile(channels: int, classes: int) -> dict[str, int]:
    """Constants of the kernel for so many channels of the finest level and classes."""
    return {
        "PIXELS": _PIXELS,
        "CHANNELS": 32,
        "INNER": max(16, min(64, 1 << (channels - 1).bit_length())),
        "CLASSES": max(16, 1 << (classes - 1).bit_length()),
        "num_warps": 4 if classes <= 32 else 8,
    }


def _fused(finest: Tensor, weight: Tensor, second: Tensor, third: Tensor, fourth: Tensor, classifier: Tensor,
           bias: Tensor) -> Tensor:  # fmt: skip
    batch, height, width, channels = finest.shape
    classes = len(classifier)
    logits = finest.new_empty(batch, height, width, classes)
    sizes = [side for level in (second, third, fourth) for side in level.shape[1:3]]
    _kernel[(-(-width // _PIXELS), batch * height)](
        finest, weight, second, third, fourth, classifier, bias, logits, height, width, channels, len(weight), classes,
        *sizes, **tile(channels, classes), **dot_options(finest.dtype),
    )  # fmt: skip
    return logits


def _plain(finest: Tensor, weight: Tensor, second: Tensor, third: Tensor, fourth: Tensor, classifier: Tensor,
           bias: Tensor) -> Tensor:  # fmt: skip
    merged = add_enlarged(functional.linear(finest, weight), (second, third, fourth))
    return functional.linear(merged.relu_(), classifier, bias.to(merged.dtype))


def _cost(finest: Tensor, weight: Tensor, second: Tensor, third: Tensor, fourth: Tensor, classifier: Tensor,
          bias: Tensor) -> Cost:  # fmt: skip
    pixels, wide, classes = finest[..., 0].numel(), len(weight), len(classifier)
    flops = 2.0 * pixels * wide * (finest.shape[-1] + classes)
    read = nbytes(finest, weight, second, third, fourth, classifier, bias)
    return Cost(flops, read, pixels * classes * finest.itemsize, product=finest.dtype)


register(
    "level_logits(Tensor finest, Tensor weight, Tensor second, Tensor third, Tensor fourth, Tensor classifier, "
    "Tensor bias) -> Tensor",
    plain=_plain,
    fused=_fused,
    shapes=lambda finest, weight, second, third, fourth, classifier, bias: finest.new_empty(
        *finest.shape[:3], len(classifier)
    ),
    cost=_cost,
    multiplies=True,
)

LEVEL_LOGITS = ("level_logits",)
"""The operations of `level_logits`."""


def level_logits(
    features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, classifier: Tensor, classifier_bias: Tensor,
    *, fused: bool,
) -> Tensor:  # fmt: skip
    """classifier(relu(sum_i Up(x_i W_i^T) + bias)) of four levels; not differentiable.

    Args:
        features: (B, H_i, W_i, C_i), finest first.
        weights: (D, C_i) in the features' type, with the batch norm in them; `bias` (D,), too.
        classifier, classifier_bias: (K, D) in the features' type, and (K,).
        fused: use the kernel.

    Returns:
        (B, H_0, W_0, K).
    """
    levels: list[Any] = projected(features, weights, bias)
    given = (features[0].contiguous(), weights[0], *levels, classifier, classifier_bias)
    logits: Tensor = torch.ops.segformer_spark.level_logits(*given) if fused else _plain(*given)
    return logits
