"""Batch normalisation over the batches of all ranks, on any device.

torch's SyncBatchNorm refuses CPU tensors, and with plain BatchNorm the result depends on the number of ranks. The
running statistics stay fp32 when the module is cast to a shorter type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.ops.batch_statistics import BatchStatistics, Reduce, over_ranks


class CrossRankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks together.

    With `reduce` None it computes what nn.BatchNorm2d does, bit for bit in fp32, with one exception.

    Attributes:
        after_global_pooling: its maps are one value per channel and image. A batch of one image has no variance, for
            which nn.BatchNorm2d raises ValueError; here it is normalised with the running statistics, which stay. At
            their initial values that leaves the scale and shift alone, as segmentation_models_pytorch's PSPNet leaves
            the norm out there.
    """

    reduce: Reduce | None = None
    after_global_pooling = False

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> CrossRankBatchNorm2d:
        """Take over the parameters, buffers and settings of `norm`."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters.update(norm._parameters)
        new._buffers.update(norm._buffers)
        new.training = norm.training
        return new

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype, normalised per channel in fp32 at least."""
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        weight, bias = self.weight.to(values.dtype), self.bias.to(values.dtype)
        if not self.training or self.reduce is None:
            single = self.after_global_pooling and values.shape[0] == 1 and values.shape[2:].numel() == 1
            return self._forward_local(values, weight, bias, self.training and not single).to(input.dtype)
        output, mean, variance, count = _Normalize.apply(values, weight, bias, self.eps, self.reduce)
        self.update_running(BatchStatistics(mean, variance, count))
        result: Tensor = output.to(input.dtype)
        return result

    def _forward_local(self, values: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Tensor:
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return functional.batch_norm(
            values, self.running_mean, self.running_var, weight, bias, training, momentum, self.eps
        )

    @torch.no_grad()
    def update_running(self, statistics: BatchStatistics) -> None:
        """Take a batch into the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.num_batches_tracked.add_(1)
        count = statistics.count
        self.running_mean.lerp_(statistics.mean, momentum)
        self.running_var.lerp_(statistics.variance * (count / (count - 1).clamp_min(1)), momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossRankBatchNorm2d:
        statistics = {name: self._buffers[name] for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in statistics.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.itemsize < 4:
                self._buffers[name] = before.to(after.device, torch.float32)
        return self


class _Normalize(torch.autograd.Function):
    """Batch normalisation with sums over ranks, forward and backward (Ioffe and Szegedy 2015, section 3)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = values.shape[1]
        own_variance, own_mean = torch.var_mean(values, (0, 2, 3), correction=0)
        own, own_count = own_mean.double(), values.numel() / channels
        squares = (own_variance.double() + own.square()) * own_count
        statistics = over_ranks(own * own_count, squares, own_count, reduce, values.dtype)
        mean, variance, count = statistics.mean, statistics.variance, statistics.count
        inverse_std = torch.rsqrt(variance + eps)
        normalized = (values - _per_channel(mean)).mul_(_per_channel(inverse_std))
        ctx.save_for_backward(normalized, weight, inverse_std, count)
        ctx.reduce = reduce
        output = normalized * _per_channel(weight) + _per_channel(bias)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad = grads[0]
        normalized, weight, inverse_std, count = ctx.saved_tensors
        grad_bias = grad.sum((0, 2, 3))
        grad_weight = (grad * normalized).sum((0, 2, 3))
        mean_grad, mean_product = (ctx.reduce(torch.stack([grad_bias, grad_weight])) / count).unbind(0)
        inner = grad - _per_channel(mean_grad) - normalized * _per_channel(mean_product)
        return inner * _per_channel(weight * inverse_std), grad_weight, grad_bias, None, None


def _per_channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)
