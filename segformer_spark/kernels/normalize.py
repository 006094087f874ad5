"""uint8 images as a network takes them, in one pass: normalised, and with the channels of a pixel side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from segformer_spark.kernels.cost import Cost
from segformer_spark.kernels.registry import jit, register, tl
from segformer_spark.ops.constants import device_constant

_PIXELS = 1024


@jit
def _plane(images, normalized, b, p, inside, pixels, mean, std, CHANNEL: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(images + (b * 3 + CHANNEL) * pixels + p, mask=inside, other=0).to(tl.float32)
    # Divisions that round as IEEE 754 has it: the CPU's values, bit by bit.
    value = tl.div_rn(tl.div_rn(value, 255.0) - mean, std)
    tl.store(normalized + (b * pixels + p) * 3 + CHANNEL, value, mask=inside)


@jit
def _kernel(  # type: ignore[no-untyped-def]
    images, normalized, pixels, mean_r, mean_g, mean_b, std_r, std_g, std_b, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    _plane(images, normalized, b, p, inside, pixels, mean_r, std_r, 0)
    _plane(images, normalized, b, p, inside, pixels, mean_g, std_g, 1)
    _plane(images, normalized, b, p, inside, pixels, mean_b, std_b, 2)


def _empty(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    batch, channels, height, width = images.shape
    return images.new_empty(batch, height, width, channels, dtype=torch.float32).permute(0, 3, 1, 2)


def _fused(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    out, pixels = _empty(images, mean, std), images.shape[2] * images.shape[3]
    _kernel[(-(-pixels // _PIXELS), len(images))](images.contiguous(), out, pixels, *mean, *std, BLOCK=_PIXELS)
    return out


def _plain(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return plain_normalize(images, tuple(mean), tuple(std)).contiguous(memory_format=torch.channels_last)


register(
    "normalize(Tensor images, float[] mean, float[] std) -> Tensor",
    plain=_plain,
    fused=_fused,
    shapes=_empty,
    cost=lambda images, mean, std: Cost(4 * images.numel(), images.nbytes, 4 * images.numel()),
)


def fused_normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(images / 255 - mean) / std, channels last in memory.

    Args:
        images: (B, 3, H, W) uint8.
        mean, std: of each channel, for values from 0 to 1.

    Returns:
        (B, 3, H, W) float32.
    """
    normalized: Tensor = torch.ops.segformer_spark.normalize(images, list(mean), list(std))
    return normalized


def plain_normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """`fused_normalize` in plain torch, in the images' own order in memory."""
    shift, scale = (_per_channel(values, images.device) for values in (mean, std))
    return (images.float() / 255.0 - shift) / scale


@device_constant
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
