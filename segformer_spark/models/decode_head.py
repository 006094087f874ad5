"""SegFormer's all-MLP decode head with its two linear layers merged.

The head computes F . concat_i(Up(W_i x_i + b_i)) with a 1x1 convolution F without bias and bilinear upsampling Up
(Xie et al. 2021, equation 4). Up is linear per channel and its weights sum to 1, so this equals

    sum_i Up((F_i W_i) x_i) + sum_i F_i b_i

Each level is projected straight at its own resolution with the product matrix, upsampled and added: the same
parameters, gradients and checkpoints, no map of 4 x hidden channels, and 1.4 to 2.6 times fewer multiply-adds in the
whole model at 512 x 512. It does not hold for heads with a norm or activation before the upsampling. Maps are channels
last (B, H, W, C), as the encoder's blocks leave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.kernels.cast import Stacks, cast_together
from segformer_spark.kernels.classify import CLASSIFY, fused_classify
from segformer_spark.kernels.classify_plain import plain_classify, statistics_of_sums
from segformer_spark.kernels.level_logits import LEVEL_LOGITS, level_logits
from segformer_spark.kernels.merge_levels import MERGE, fused_merge_levels, merge_levels
from segformer_spark.kernels.registry import runs_fused
from segformer_spark.kernels.select import Arithmetic, Setting, select_arithmetic
from segformer_spark.models.batch_norm import CrossRankBatchNorm2d
from segformer_spark.models.classify_pixels import classify_pixels
from segformer_spark.models.recomputed import arithmetic
from segformer_spark.models.upsample import BAND, add_band, project_and_add, widen
from segformer_spark.ops.interpolation import bands


class MergedDecodeHead(nn.Module):
    """Takes over the submodules of transformers' SegformerDecodeHead under their own names."""

    linear_projections: nn.ModuleList
    linear_fuse: nn.Conv2d
    batch_norm: CrossRankBatchNorm2d
    dropout: nn.Dropout
    classifier: nn.Conv2d

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        for name, child in head.named_children():
            self.add_module(name, child)
        self.batch_norm = CrossRankBatchNorm2d.from_batch_norm(head.batch_norm)  # type: ignore[arg-type]
        self.kernels: Setting = "auto"
        fuse, *projections = self._factors()
        self._stacks = Stacks([[fuse.flatten(1).shape], *([weight.shape] for weight in projections)])

    def forward(self, encoder_hidden_states: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first -> logits (B, num_classes, H_0, W_0)."""
        kernels = select_arithmetic(self.kernels, encoder_hidden_states[0].device)
        if kernels != "cpu":
            return self._on_gpu(encoder_hidden_states, kernels)
        dtype = arithmetic(encoder_hidden_states[0])
        with torch.autocast(encoder_hidden_states[0].device.type, enabled=False):
            features = [feature.permute(0, 2, 3, 1).to(dtype) for feature in encoder_hidden_states]
            weights, bias = self._merged_weights()
            if self.training:
                logits = self._train(_fuse(features, weights, bias))
            elif torch.is_grad_enabled():
                logits = self._classify(_fuse(features, weights, bias))
            else:
                logits = self._infer(features, weights, bias)
        return logits.permute(0, 3, 1, 2).contiguous()

    def _on_gpu(self, maps: Sequence[Tensor], kernels: Arithmetic) -> Tensor:
        """Few bytes in few kernels; the logits stay channels last in memory."""
        dtype = arithmetic(maps[0])
        with torch.autocast(maps[0].device.type, enabled=False):
            features = [feature.permute(0, 2, 3, 1).to(dtype) for feature in maps]
            if self.training:
                logits = self._train_on_gpu(features, *self._merged_in(dtype), kernels)
            elif torch.is_grad_enabled():
                logits = self._classify(merge_levels(features, *self._merged_in(dtype)))
            else:
                logits = self._infer_on_gpu(features, dtype, kernels)
        return logits.permute(0, 3, 1, 2)

    def _train_on_gpu(
        self, features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, kernels: Arithmetic
    ) -> Tensor:
        norm, classifier = self.batch_norm, self.classifier
        assert classifier.bias is not None
        last = (norm.weight, norm.bias, classifier.weight.flatten(1), classifier.bias)
        options: dict[str, Any] = {"eps": norm.eps, "dropout": self.dropout.p, "reduce": norm.reduce}
        if kernels == "gpu" and runs_fused((*MERGE, *CLASSIFY), features[0].device):
            merged, sums = fused_merge_levels(features, weights, bias)
            statistics = statistics_of_sums(sums, merged[..., 0].numel(), norm.reduce)
            logits = fused_classify(merged.flatten(0, 2), *last, statistics, **options)
        else:
            merged = merge_levels(features, weights, bias)
            logits, statistics = plain_classify(merged.flatten(0, 2), *last, **options)
        norm.update_running(statistics)
        return logits.view(*merged.shape[:3], -1)

    def _infer_on_gpu(self, features: Sequence[Tensor], dtype: torch.dtype, kernels: Arithmetic) -> Tensor:
        """Batch norm folded into the projections."""
        norm = self.batch_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weights, bias = self._merged_in(dtype, scale, norm.bias - norm.running_mean * scale)
        classifier = self.classifier.weight.flatten(1).to(dtype)
        fused = kernels == "gpu" and runs_fused(LEVEL_LOGITS, features[0].device)
        return level_logits(features, weights, bias, classifier, self._bias(dtype), fused=fused)

    def _factors(self) -> list[Tensor]:
        """F as it is, and every W_i."""
        modules: Any = self.linear_projections
        return [self.linear_fuse.weight, *(module.proj.weight for module in modules)]

    def _merged_in(
        self, dtype: torch.dtype, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """scale F_i W_i (D, C_i) per level and the summed bias (D,) + shift, from factors in `dtype`: as exact as their
        product is in it."""
        modules: Any = self.linear_projections
        projections = [module.proj for module in modules]
        fuse = self.linear_fuse.weight.flatten(1)
        # The head concatenates the coarsest level first.
        fuse = fuse if scale is None else fuse * scale[:, None]
        bias = torch.mv(fuse, torch.cat([projection.bias for projection in reversed(projections)]))
        bias = bias if shift is None else bias + shift
        fuse, *weights = cast_together([fuse, *self._factors()[1:]], self._stacks, dtype)
        parts = fuse.chunk(len(projections), dim=1)[::-1]
        return [part @ weight for part, weight in zip(parts, weights, strict=True)], bias.to(dtype)

    def _train(self, fused: Tensor) -> Tensor:
        norm, classifier = self.batch_norm, self.classifier
        assert classifier.bias is not None
        logits, statistics = classify_pixels(
            fused.flatten(0, 2),
            norm.weight,
            norm.bias,
            classifier.weight.flatten(1),
            classifier.bias,
            eps=norm.eps,
            dropout=self.dropout.p,
            reduce=norm.reduce,
        )
        norm.update_running(statistics)
        return logits.view(*fused.shape[:3], -1)

    def penultimate(self, encoder_hidden_states: Sequence[Tensor]) -> Tensor:
        """What the classifier sees (B, D, H_0, W_0), without dropout."""
        dtype = arithmetic(encoder_hidden_states[0])
        with torch.autocast(encoder_hidden_states[0].device.type, enabled=False):
            features = [feature.permute(0, 2, 3, 1).to(dtype) for feature in encoder_hidden_states]
            return self._activate(_fuse(features, *self._merged_weights()))

    def classify(self, active: Tensor) -> Tensor:
        """That map -> logits (B, num_classes, H_0, W_0)."""
        return self._project(active.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _classify(self, fused: Tensor) -> Tensor:
        """Evaluation with gradients, layer by layer."""
        return self._project(self._activate(fused).permute(0, 2, 3, 1))

    def _activate(self, fused: Tensor) -> Tensor:
        return functional.relu(self.batch_norm(fused.permute(0, 3, 1, 2)))

    def _project(self, active: Tensor) -> Tensor:
        return functional.linear(active, self.classifier.weight.flatten(1).to(active.dtype), self._bias(active.dtype))

    def _infer(self, features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
        """Batch norm folded into the projections; the widest map exists for a band of rows at a time."""
        norm, dtype = self.batch_norm, features[0].dtype
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (bias - norm.running_mean) * scale + norm.bias
        weights = [scale[:, None] * weight for weight in weights]
        finest, levels = weights[0].to(dtype), _widened(features, weights)
        batch, height, width, _ = features[0].shape
        classifier = self.classifier.weight.flatten(1).to(dtype)
        logits = features[0].new_empty(batch, height, width, len(classifier))
        for rows in bands(height, BAND):
            band = functional.linear(features[0][:, rows], finest, bias.to(dtype))
            for level in levels:
                add_band(band.flatten(2), level.flatten(2), rows, height)
            logits[:, rows] = functional.linear(band.relu_(), classifier, self._bias(dtype))
        return logits

    def _bias(self, dtype: torch.dtype) -> Tensor:
        assert self.classifier.bias is not None
        return self.classifier.bias.to(dtype)

    def _merged_weights(self) -> tuple[list[Tensor], Tensor]:
        """F_i W_i (D, C_i) per level and the summed bias (D,), in fp32 at least."""
        modules: Any = self.linear_projections
        projections = [module.proj for module in modules]
        fuse = self.linear_fuse.weight.flatten(1)
        fuse = fuse.to(torch.promote_types(fuse.dtype, torch.float32))
        # The head concatenates the coarsest level first.
        parts = fuse.chunk(len(projections), dim=1)[::-1]
        bias = torch.stack([part @ one.bias.to(fuse.dtype) for part, one in zip(parts, projections, strict=True)])
        weights = [part @ one.weight.to(fuse.dtype) for part, one in zip(parts, projections, strict=True)]
        return weights, bias.sum(0)


def _fuse(features: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """The levels (B, H_i, W_i, C_i) projected, upsampled and added: (B, H_0, W_0, D)."""
    dtype = features[0].dtype
    return project_and_add(features[0], weights[0].to(dtype), bias.to(dtype), _widened(features, weights))


def _widened(features: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """All levels but the finest, projected and as wide as it: (B, H_i, W_0, D)."""
    width = features[0].shape[2]
    pairs = zip(features[1:], weights[1:], strict=True)
    return [widen(functional.linear(feature, weight.to(feature.dtype)), width) for feature, weight in pairs]
