"""The sums of cross-entropy and Dice over enlarged logits in plain torch: one softmax for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from segformer_spark.ops.interpolation import constant_interpolation_matrix


class _PlainSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
    ) -> Tensor:
        sums, kept = _sums(logits, labels, class_weights, smoothing, ignore_index)
        ctx.save_for_backward(logits, class_weights, *kept)
        ctx.smoothing = smoothing
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        logits, class_weights, *kept = ctx.saved_tensors
        return _gradient(grads[0], logits, class_weights, ctx.smoothing, kept), None, None, None, None


def plain_loss_sums(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    """`segmentation_loss.loss_sums` of logits (B, C, h, w) in fp32 or fp64."""
    result: Tensor = _PlainSums.apply(logits, labels, class_weights, smoothing, ignore_index)
    return result


def plain_forward(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    """The formula of the operation: logits (B, h, w, C) -> sums (1, 2 + 3 C)."""
    return _sums(_channels_first(logits), labels, class_weights, smoothing, ignore_index)[0][None]


def plain_backward(
    grads: Tensor, logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    """The gradient of `plain_forward` for the logits, from those of its sums (2 + 3 C,)."""
    wide = _channels_first(logits)
    kept = _sums(wide, labels, class_weights, smoothing, ignore_index)[1]
    return _gradient(grads, wide, class_weights, smoothing, kept).permute(0, 2, 3, 1).to(logits.dtype).contiguous()


def _channels_first(logits: Tensor) -> Tensor:
    return logits.permute(0, 3, 1, 2).to(torch.promote_types(logits.dtype, torch.float32))


def _sums(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> tuple[Tensor, list[Tensor]]:
    """fp64 (2 + 3 C,), and what the gradient needs."""
    size, classes = (labels.shape[-2], labels.shape[-1]), logits.shape[1]
    enlarged = logits.contiguous(memory_format=torch.channels_last)
    enlarged = functional.interpolate(enlarged, size=size, mode="bilinear", align_corners=False)
    log_p = torch.log_softmax(enlarged.permute(0, 2, 3, 1), -1)
    valid = labels != ignore_index
    target = torch.where(valid, labels, 0).long()
    mask = valid.to(log_p.dtype)
    of_pixel = mask if class_weights is None else class_weights.to(log_p.dtype)[target] * mask
    true = log_p.gather(-1, target[..., None]).squeeze(-1)
    losses = (1 - smoothing) * of_pixel * true
    if smoothing:
        of_class = _weights(class_weights, log_p) * (smoothing / classes)
        losses = losses + mask * (log_p @ of_class)
    probabilities = log_p.exp_()
    predicted = (mask.flatten(0, 1)[:, None] @ probabilities.flatten(0, 1)).sum((0, 1), dtype=torch.float64)
    own = true.exp_().mul_(mask)
    bins = _bins(target, classes)
    overlap, truth = _row_sums(own, bins, classes), _row_sums(mask, bins, classes)
    sums = torch.cat([torch.stack([-_total(losses), _total(of_pixel)]), overlap, predicted, truth])
    return sums, [probabilities, target, mask, of_pixel, own]


def _gradient(
    grads: Tensor, logits: Tensor, class_weights: Tensor | None, smoothing: float, kept: Sequence[Tensor]
) -> Tensor:
    probabilities, target, mask, of_pixel, own = kept
    classes = probabilities.shape[-1]
    of_sums = grads.to(probabilities.dtype).split_with_sizes([2, classes, classes, classes])
    of_loss, of_overlap, of_predicted = of_sums[0][0], of_sums[1], of_sums[2]
    of_own = own * of_overlap[target]
    weighted = (1 - smoothing) * of_loss * of_pixel
    shared = weighted - mask * (probabilities @ of_predicted) - of_own
    of_class = _weights(class_weights, probabilities) * (smoothing / classes) * of_loss if smoothing else None
    if of_class is not None:
        shared = shared + mask * of_class.sum()
    grad = torch.addcmul(shared[..., None], mask[..., None], of_predicted).mul_(probabilities)
    # One class of each pixel: read, added to and put back, where an addition at indices has no fixed order.
    true = target[..., None]
    grad.scatter_(-1, true, grad.gather(-1, true) + (of_own - weighted)[..., None])
    if of_class is not None:
        grad.addcmul_(mask[..., None], of_class, value=-1)
    return _reduced(grad, logits)


def _weights(class_weights: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(like.shape[-1]) if class_weights is None else class_weights.to(like.dtype)


def _total(values: Tensor) -> Tensor:
    """Each row in its own arithmetic, then all rows in fp64."""
    return values.sum(-1).sum(dtype=torch.float64)


def _bins(target: Tensor, classes: int) -> Tensor:
    """Row and class of every pixel as one number: sums of rows meet at few addresses, and stay exact in fp32."""
    rows = target.shape[0] * target.shape[1]
    first = torch.arange(0, rows * classes, classes, device=target.device)
    return (target.flatten(0, 1) + first[:, None]).flatten()


def _row_sums(values: Tensor, bins: Tensor, classes: int) -> Tensor:
    rows = values.shape[0] * values.shape[1]
    sums = values.new_zeros(rows * classes).index_add_(0, bins, values.flatten())
    return sums.view(rows, classes).sum(0, dtype=torch.float64)


def _reduced(grad: Tensor, logits: Tensor) -> Tensor:
    """The gradient of enlarged logits (B, H, W, C) for those that were enlarged, (B, C, h, w)."""
    (batch, high, wide, _), (height, width) = grad.shape, logits.shape[-2:]
    if not torch.are_deterministic_algorithms_enabled():
        shape = list(logits.shape)
        channels_first = grad.permute(0, 3, 1, 2)
        reduced: Tensor = torch.ops.aten.upsample_bilinear2d_backward(channels_first, [high, wide], shape, False)
        return reduced
    vertical = constant_interpolation_matrix(height, high, grad.device, grad.dtype).T
    horizontal = constant_interpolation_matrix(width, wide, grad.device, grad.dtype).T
    rows = (vertical @ grad.view(batch, high, -1)).view(batch, height, wide, -1)
    result: Tensor = (horizontal @ rows).permute(0, 3, 1, 2)
    return result
