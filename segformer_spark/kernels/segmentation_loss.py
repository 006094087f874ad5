"""The sums of cross-entropy and Dice over enlarged logits: one softmax for both, forward and backward.

Between four neighbouring logits lies a rectangle of pixels that are made of those four alone. The kernels take a row of
such rectangles at a time: the logits are loaded once for all of their pixels, enlarged, normalised and summed in
registers, and the gradient of a rectangle is added up there, too. No full-size map is written or read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segformer_spark.kernels.cost import Cost, nbytes
from segformer_spark.kernels.registry import jit, register, runs_fused, tl
from segformer_spark.kernels.segmentation_loss_plain import plain_backward, plain_forward, plain_loss_sums
from segformer_spark.kernels.select import Arithmetic
from segformer_spark.ops.constants import device_constant
from segformer_spark.ops.interpolation import source_position

STRIP = 4
"""Rows of logits that a program walks down: what the last has for the next one stays in registers."""

_VALUES = 1024
"""Values of a tile, logits times classes: 8 for each of 128 threads."""


@jit
def columns_between(col_start, j, inside):  # type: ignore[no-untyped-def]
    """The first pixel between each column of logits and the next, the one after the last, and how many at most."""
    first = tl.load(col_start + j, mask=inside, other=0)
    last = tl.load(col_start + j + 1, mask=inside, other=0)
    return first, last, tl.max(last - first, 0)


@jit
def corners(logits, b, i, j, c, inside, h, w, C):  # type: ignore[no-untyped-def]
    """The four logits around the rectangles of row i: above left and right, below left and right."""
    known = inside[:, None] & (c < C)[None, :]
    right = tl.minimum(j + 1, w - 1)
    upper = logits + ((b * h + i) * w) * C
    lower = logits + ((b * h + tl.minimum(i + 1, h - 1)) * w) * C
    upper_left = tl.load(upper + j[:, None] * C + c, mask=known, other=0.0).to(tl.float32)
    upper_right = tl.load(upper + right[:, None] * C + c, mask=known, other=0.0).to(tl.float32)
    lower_left = tl.load(lower + j[:, None] * C + c, mask=known, other=0.0).to(tl.float32)
    lower_right = tl.load(lower + right[:, None] * C + c, mask=known, other=0.0).to(tl.float32)
    return upper_left, upper_right, lower_left, lower_right


@jit
def _pixel(left, right, j, c, col, b, r, H, W, col_scale, labels, ignore, live, C):  # type: ignore[no-untyped-def]
    """Enlarged logits of one pixel per lane, its label and whether it counts; exponentials and their sum."""
    share = tl.maximum((col + 0.5) * col_scale - 0.5, 0.0) - j
    x = left + (right - left) * share[:, None]
    x = tl.where(c[None, :] < C, x, -float("inf"))
    label = tl.load(labels + (b * H + r) * W + col, mask=live, other=ignore).to(tl.int32)
    valid = live & (label != ignore)
    top = tl.max(x, 1)
    exponential = tl.exp(x - top[:, None])
    total = tl.sum(exponential, 1)
    own = (c[None, :] == label[:, None]) & valid[:, None]  # an ignored label may be one of the tile's classes
    return x, share, valid, top, exponential / total[:, None], total, own


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    logits, labels, weights, row_start, col_start, partials, h, w, H, W, C, row_scale, col_scale, smoothing, ignore,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block, strip, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    j, c = block * LANES + tl.arange(0, LANES), tl.arange(0, BLOCK_C)
    inside = j < w
    first, last, steps = columns_between(col_start, j, inside)
    of_class = tl.where(c < C, 1.0, 0.0)
    if WEIGHTED:
        of_class = tl.load(weights + c, mask=c < C, other=0.0)
    loss = tl.zeros([LANES], tl.float32)
    weight = tl.zeros([LANES], tl.float32)
    overlap = tl.zeros([LANES, BLOCK_C], tl.float32)
    predicted = tl.zeros([LANES, BLOCK_C], tl.float32)
    truth = tl.zeros([LANES, BLOCK_C], tl.float32)
    for i in range(strip * STRIP, tl.minimum(strip * STRIP + STRIP, h)):
        upper_left, upper_right, lower_left, lower_right = corners(logits, b, i, j, c, inside, h, w, C)
        for r in range(tl.load(row_start + i), tl.load(row_start + i + 1)):
            down = tl.maximum((r + 0.5) * row_scale - 0.5, 0.0) - i
            left = upper_left + (lower_left - upper_left) * down
            right = upper_right + (lower_right - upper_right) * down
            for k in range(0, steps):
                col = first + k
                live = inside & (col < last)
                x, _share, valid, top, p, total, own = _pixel(
                    left, right, j, c, col, b, r, H, W, col_scale, labels, ignore, live, C
                )
                counts = tl.where(valid, 1.0, 0.0)
                mine = tl.where(own, 1.0, 0.0)
                of_pixel = tl.sum(mine * of_class[None, :], 1)
                logarithm = top + tl.log(total)
                true = tl.sum(tl.where(own, x, 0.0), 1)
                loss += (1.0 - smoothing) * of_pixel * (logarithm - true)
                if SMOOTH:
                    negative_log_p = tl.where(c[None, :] < C, logarithm[:, None] - x, 0.0)
                    loss += counts * (smoothing / C) * tl.sum(negative_log_p * of_class[None, :], 1)
                weight += of_pixel
                predicted += p * counts[:, None]
                overlap += p * mine
                truth += mine
    number = (b * tl.num_programs(1) + strip) * tl.num_programs(0) + block
    out = partials + number * (2 + 3 * C)
    tl.store(out, tl.sum(loss, 0))
    tl.store(out + 1, tl.sum(weight, 0))
    tl.store(out + 2 + c, tl.sum(overlap, 0), mask=c < C)
    tl.store(out + 2 + C + c, tl.sum(predicted, 0), mask=c < C)
    tl.store(out + 2 + 2 * C + c, tl.sum(truth, 0), mask=c < C)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    logits, labels, weights, row_start, col_start, grads, lefts, rights, edges, h, w, H, W, C, row_scale, col_scale,
    smoothing, ignore,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    block, strip, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    j, c = block * LANES + tl.arange(0, LANES), tl.arange(0, BLOCK_C)
    inside = j < w
    first, last, steps = columns_between(col_start, j, inside)
    of_class = tl.where(c < C, 1.0, 0.0)
    if WEIGHTED:
        of_class = tl.load(weights + c, mask=c < C, other=0.0)
    of_loss = tl.load(grads)
    of_overlap = tl.load(grads + 2 + c, mask=c < C, other=0.0)
    of_predicted = tl.load(grads + 2 + C + c, mask=c < C, other=0.0)
    top_left = tl.zeros([LANES, BLOCK_C], tl.float32)
    top_right = tl.zeros([LANES, BLOCK_C], tl.float32)
    end = tl.minimum(strip * STRIP + STRIP, h)
    for i in range(strip * STRIP, end):
        upper_left, upper_right, lower_left, lower_right = corners(logits, b, i, j, c, inside, h, w, C)
        bottom_left = tl.zeros([LANES, BLOCK_C], tl.float32)
        bottom_right = tl.zeros([LANES, BLOCK_C], tl.float32)
        for r in range(tl.load(row_start + i), tl.load(row_start + i + 1)):
            down = tl.maximum((r + 0.5) * row_scale - 0.5, 0.0) - i
            left = upper_left + (lower_left - upper_left) * down
            right = upper_right + (lower_right - upper_right) * down
            of_left = tl.zeros([LANES, BLOCK_C], tl.float32)
            of_right = tl.zeros([LANES, BLOCK_C], tl.float32)
            for k in range(0, steps):
                col = first + k
                live = inside & (col < last)
                _x, share, valid, _top, p, _total, own = _pixel(
                    left, right, j, c, col, b, r, H, W, col_scale, labels, ignore, live, C
                )
                counts = tl.where(valid, 1.0, 0.0)
                one = tl.where(own, 1.0, 0.0)
                of_pixel = (1.0 - smoothing) * of_loss * tl.sum(one * of_class[None, :], 1)
                of_p = of_predicted[None, :] + one * of_overlap[None, :]
                along = tl.sum(p * of_p, 1)
                inner = p * (of_p - along[:, None]) + of_pixel[:, None] * (p - one)
                if SMOOTH:
                    inner += (of_loss * smoothing / C) * (p * tl.sum(of_class, 0) - of_class[None, :])
                inner = inner * counts[:, None]
                of_right += inner * share[:, None]
                of_left += inner * (1.0 - share)[:, None]
            top_left += of_left * (1.0 - down)
            top_right += of_right * (1.0 - down)
            bottom_left += of_left * down
            bottom_right += of_right * down
        # At the last row and column both neighbours are the same logit.
        alone = tl.where(i == h - 1, 1.0, 0.0)
        top_left += bottom_left * alone
        top_right += bottom_right * alone
        at_end = tl.where(j == w - 1, 1.0, 0.0)[:, None]
        known = inside[:, None] & (c < C)[None, :]
        place = ((b * h + i) * w + j)[:, None] * C + c
        tl.store(lefts + place, top_left + top_right * at_end, mask=known)
        tl.store(rights + place, top_right, mask=known)
        top_left, top_right = bottom_left, bottom_right
    at_end = tl.where(j == w - 1, 1.0, 0.0)[:, None]
    known = inside[:, None] & (c < C)[None, :]
    place = ((b * tl.num_programs(1) + strip) * 2 * w + j)[:, None] * C + c
    tl.store(edges + place, top_left + top_right * at_end, mask=known)
    tl.store(edges + place + w * C, top_right, mask=known)


@jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    lefts, rights, edges, out, h, w, C, strips, STRIP: tl.constexpr, BLOCK: tl.constexpr
):
    """Each logit's gradient: from its rectangle, the one to the left, and for the first row of a strip those above."""
    row, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # column and class as one number
    inside, has_left = value < w * C, (value >= C) & (value < w * C)
    start = (b * h + row) * w * C
    total = tl.load(lefts + start + value, mask=inside, other=0.0)
    total += tl.load(rights + start + value - C, mask=has_left, other=0.0)
    above = (b * strips + row // STRIP - 1) * 2 * w * C
    rows = tl.zeros([BLOCK], tl.int32) + row
    is_first = (rows % STRIP == 0) & (rows > 0)
    total += tl.load(edges + above + value, mask=inside & is_first, other=0.0)
    total += tl.load(edges + above + w * C + value - C, mask=has_left & is_first, other=0.0)
    tl.store(out + start + value, total, mask=inside)


@device_constant
def starts(length: int, size: int, device: torch.device) -> Tensor:
    """The first pixel between each logit and the next, along one side; `size` at the end. int32 (length + 1,)."""
    before = [source_position(length, size, pixel)[0] for pixel in range(size)]
    first = [next((pixel for pixel in range(size) if before[pixel] >= index), size) for index in range(length)]
    return torch.tensor([*first, size], dtype=torch.int32).to(device)


def loss_tile(classes: int) -> tuple[int, int]:
    """Columns of logits and classes of a tile."""
    block = max(2, 1 << (classes - 1).bit_length())
    return max(1, min(128, _VALUES // block)), block


def _shared(logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[list[Any], list[Any]]:
    """Arguments of both kernels before and after their outputs."""
    _, h, w, classes = logits.shape
    high, wide = labels.shape[-2:]
    first = [starts(h, high, logits.device), starts(w, wide, logits.device)]
    return (
        [logits, labels, labels if weights is None else weights, *first],
        [h, w, high, wide, classes, h / high, w / wide],
    )


def _fused_forward(
    logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    batch, h, w, classes = logits.shape
    lanes, block = loss_tile(classes)
    grid = (-(-w // lanes), -(-h // STRIP), batch)
    partials = torch.empty(grid[0] * grid[1] * batch, 2 + 3 * classes, device=logits.device)
    before, after = _shared(logits, labels, weights)
    _forward_kernel[grid](
        *before, partials, *after, smoothing, ignore_index,
        WEIGHTED=weights is not None, SMOOTH=smoothing > 0, STRIP=STRIP, LANES=lanes, BLOCK_C=block,
    )  # fmt: skip
    return partials


def _fused_backward(
    grads: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    batch, h, w, classes = logits.shape
    lanes, block = loss_tile(classes)
    grid = (-(-w // lanes), -(-h // STRIP), batch)
    lefts, rights = (torch.empty(logits.shape, device=logits.device) for _ in range(2))
    edges = torch.empty(batch, grid[1], 2, w, classes, device=logits.device)
    before, after = _shared(logits, labels, weights)
    _backward_kernel[grid](
        *before, grads, lefts, rights, edges, *after, smoothing, ignore_index,
        WEIGHTED=weights is not None, SMOOTH=smoothing > 0, STRIP=STRIP, LANES=lanes, BLOCK_C=block,
    )  # fmt: skip
    out = torch.empty_like(logits)
    _combine_kernel[(-(-w * classes // _VALUES), h, batch)](
        lefts, rights, edges, out, h, w, classes, grid[1], STRIP=STRIP, BLOCK=_VALUES
    )
    return out


_FLOPS_FORWARD, _FLOPS_BACKWARD = 14, 24
"""For each pixel and class, an exponential counted as four."""


def _cost_forward(logits: Tensor, labels: Tensor, weights: Tensor | None, *_: Any) -> Cost:
    batch, h, w, classes = logits.shape
    lanes = loss_tile(classes)[0]
    partials = 4 * batch * -(-h // STRIP) * -(-w // lanes) * (2 + 3 * classes)
    return Cost(_FLOPS_FORWARD * labels.numel() * classes, nbytes(logits, labels, weights), partials)


def _cost_backward(grads: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None, *_: Any) -> Cost:
    batch, h, w, classes = logits.shape
    planes = 4.0 * 2 * batch * w * classes * (h + -(-h // STRIP))
    return Cost(
        _FLOPS_BACKWARD * labels.numel() * classes,
        nbytes(grads, logits, labels, weights) + planes,
        planes + logits.nbytes,
        launches=2,
    )


register(
    "loss_sums(Tensor logits, Tensor labels, Tensor? weights, float smoothing, int ignore_index) -> Tensor",
    plain=plain_forward,
    fused=_fused_forward,
    shapes=lambda logits, *_: logits.new_empty(1, 2 + 3 * logits.shape[-1], dtype=torch.float32),
    cost=_cost_forward,
)
register(
    "loss_sums_backward(Tensor grads, Tensor logits, Tensor labels, Tensor? weights, float smoothing, "
    "int ignore_index) -> Tensor",
    plain=plain_backward,
    fused=_fused_backward,
    shapes=lambda grads, logits, *_: torch.empty_like(logits),
    cost=_cost_backward,
)


class _FusedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, ignore_index: int
    ) -> Tensor:
        ctx.save_for_backward(logits, labels, weights)
        ctx.options = (smoothing, ignore_index)
        parts = torch.ops.segformer_spark.loss_sums(logits, labels, weights, smoothing, ignore_index)
        total: Tensor = parts.sum(0, dtype=torch.float64)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        own = ctx.saved_tensors
        of_sums = grads[0].to(torch.promote_types(own[0].dtype, torch.float32))
        grad = torch.ops.segformer_spark.loss_sums_backward(of_sums, *own, *ctx.options)
        return grad, None, None, None, None


LOSS = ("loss_sums", "loss_sums_backward")
"""The operations of `loss_sums`."""


def loss_sums(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    arithmetic: Arithmetic,
) -> Tensor:
    """What cross-entropy and Dice need of a batch.

    Args:
        logits: (B, C, h, w); enlarged to the labels' size by bilinear interpolation.
        labels: (B, H, W) of any integer type.
        class_weights: (C,) of the cross-entropy, or None.
        smoothing: label smoothing of the cross-entropy.
        arithmetic: plain or gpu.

    Returns:
        fp64 (2 + 3 C,): weighted losses and weights (CrossEntropyLoss.sums), then overlap, predicted and true pixels of
        every class (DiceLoss.sums).
    """
    if arithmetic == "plain" or not runs_fused(LOSS, logits.device):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return plain_loss_sums(wide, labels, class_weights, smoothing, ignore_index)
    own = logits.permute(0, 2, 3, 1).contiguous()
    result: Tensor = _FusedSums.apply(own, labels, class_weights, smoothing, ignore_index)
    return result
