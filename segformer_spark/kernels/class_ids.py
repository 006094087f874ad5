"""Class ids of enlarged logits, without the enlarged logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.kernels.cost import Cost
from segformer_spark.kernels.registry import jit, register, runs_fused, tl
from segformer_spark.kernels.segmentation_loss import STRIP, columns_between, corners, loss_tile, starts
from segformer_spark.kernels.select import Arithmetic


@jit
def _kernel(  # type: ignore[no-untyped-def]
    logits, row_start, col_start, ids, h, w, H, W, C, row_scale, col_scale,
    STRIP: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block, strip, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    j, c = block * LANES + tl.arange(0, LANES), tl.arange(0, BLOCK_C)
    inside = j < w
    first, last, steps = columns_between(col_start, j, inside)
    for i in range(strip * STRIP, tl.minimum(strip * STRIP + STRIP, h)):
        upper_left, upper_right, lower_left, lower_right = corners(logits, b, i, j, c, inside, h, w, C)
        for r in range(tl.load(row_start + i), tl.load(row_start + i + 1)):
            down = tl.maximum((r + 0.5) * row_scale - 0.5, 0.0) - i
            left = upper_left + (lower_left - upper_left) * down
            right = upper_right + (lower_right - upper_right) * down
            for k in range(0, steps):
                col = first + k
                share = tl.maximum((col + 0.5) * col_scale - 0.5, 0.0) - j
                x = left + (right - left) * share[:, None]
                best = tl.argmax(tl.where(c[None, :] < C, x, -float("inf")), 1)
                tl.store(ids + (b * H + r) * W + col, best.to(ids.dtype.element_ty), mask=inside & (col < last))


def _dtype(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int32


def _fused(logits: Tensor, height: int, width: int) -> Tensor:
    batch, h, w, classes = logits.shape
    lanes, block = loss_tile(classes)
    ids = logits.new_empty(batch, height, width, dtype=_dtype(classes))
    _kernel[(-(-w // lanes), -(-h // STRIP), batch)](
        logits, starts(h, height, logits.device), starts(w, width, logits.device), ids, h, w, height, width, classes,
        h / height, w / width, STRIP=STRIP, LANES=lanes, BLOCK_C=block, num_warps=4 if block <= 128 else 8,
    )  # fmt: skip
    return ids


def _plain(logits: Tensor, height: int, width: int) -> Tensor:
    """One image at a time, whose enlarged logits are the most that lives."""
    own = logits.permute(0, 3, 1, 2)
    ids = logits.new_empty(len(logits), height, width, dtype=_dtype(logits.shape[-1]))
    for number, one in enumerate(own.split_with_sizes([1] * len(own))):
        wide = one.to(torch.promote_types(one.dtype, torch.float32))
        scores = functional.interpolate(wide, size=(height, width), mode="bilinear", align_corners=False)
        ids[number] = scores[0].argmax(0)
    return ids


_FLOPS = 6
"""For each pixel and class."""

register(
    "class_ids(Tensor logits, int height, int width) -> Tensor",
    plain=_plain,
    fused=_fused,
    shapes=lambda logits, height, width: logits.new_empty(len(logits), height, width, dtype=_dtype(logits.shape[-1])),
    cost=lambda logits, height, width: Cost(
        _FLOPS * len(logits) * height * width * logits.shape[-1],
        logits.nbytes,
        len(logits) * height * width * _dtype(logits.shape[-1]).itemsize,
    ),
)


def class_ids(logits: Tensor, size: tuple[int, int], arithmetic: Arithmetic) -> Tensor:
    """The class of the largest enlarged logit of every pixel.

    Args:
        logits: (B, C, h, w), finite.
        size: height and width to enlarge them to, at least their own.
        arithmetic: plain or gpu.

    Returns:
        (B, H, W), uint8, or int32 for more than 256 classes; of equal logits the first.
    """
    own = logits.permute(0, 2, 3, 1).contiguous()
    fused = arithmetic == "gpu" and runs_fused(["class_ids"], logits.device)
    ids: Tensor = torch.ops.segformer_spark.class_ids(own, *size) if fused else _plain(own, *size)
    return ids
