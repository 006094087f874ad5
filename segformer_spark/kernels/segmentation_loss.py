"""The sums of cross-entropy and Dice over enlarged logits: one softmax for both, forward and backward."""

from __future__ import annotations

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
        ctx.save_for_backward(logits, probabilities, target, mask, of_pixel, own, class_weights)
        ctx.smoothing = smoothing
        return torch.cat([torch.stack([-_total(losses), _total(of_pixel)]), overlap, predicted, truth])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        logits, probabilities, target, mask, of_pixel, own, class_weights = ctx.saved_tensors
        classes, dtype = probabilities.shape[-1], probabilities.dtype
        of_loss, of_overlap, of_predicted, _ = _split(grads[0].to(dtype), classes)
        of_own = own * of_overlap[target]
        weighted = (1 - ctx.smoothing) * of_loss[0] * of_pixel
        shared = weighted - mask * (probabilities @ of_predicted) - of_own
        if ctx.smoothing:
            of_class = _weights(class_weights, probabilities) * (ctx.smoothing / classes) * of_loss[0]
            shared = shared + mask * of_class.sum()
        grad = torch.addcmul(shared[..., None], mask[..., None], of_predicted).mul_(probabilities)
        grad.scatter_add_(-1, target[..., None], (of_own - weighted)[..., None])
        if ctx.smoothing:
            grad.addcmul_(mask[..., None], of_class, value=-1)
        return _reduced(grad, logits), None, None, None, None


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


def _split(sums: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, overlap, predicted, truth = sums.split_with_sizes([2, classes, classes, classes])
    return loss, overlap, predicted, truth


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


def loss_sums(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, ignore_index: int
) -> Tensor:
    """What cross-entropy and Dice need of a batch.

    Args:
        logits: (B, C, h, w), fp32 or fp64; enlarged to the labels' size.
        labels: (B, H, W) of any integer type.
        class_weights: (C,) of the cross-entropy, or None.
        smoothing: label smoothing of the cross-entropy.

    Returns:
        fp64 (2 + 3 C,): weighted losses and weights (CrossEntropyLoss.sums), then overlap, predicted and true pixels of
        every class (DiceLoss.sums).
    """
    result: Tensor = _PlainSums.apply(logits, labels, class_weights, smoothing, ignore_index)
    return result
