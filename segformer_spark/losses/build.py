"""The configured loss: named parts with weights, on logits at label resolution in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from segformer_spark.config.schema import LossConfig
from segformer_spark.kernels.segmentation_loss import loss_sums
from segformer_spark.kernels.select import Arithmetic, Setting, select_arithmetic
from segformer_spark.losses.base import Reduce, SumLoss, no_reduce
from segformer_spark.losses.boundary import BoundaryCrossEntropyLoss
from segformer_spark.losses.cross_entropy import CrossEntropyLoss, FocalLoss
from segformer_spark.losses.dice import DiceLoss
from segformer_spark.losses.lovasz import LovaszSoftmaxLoss
from segformer_spark.losses.ohem import OhemLoss
from segformer_spark.losses.streamed import streamed_sums


class WeightedSum(nn.Module):
    """The sum of weighted losses."""

    def __init__(self, parts: dict[str, tuple[float, nn.Module]], auxiliary_weight: float = 0.0) -> None:
        super().__init__()
        self.auxiliary_weight = auxiliary_weight
        self.weights = {name: weight for name, (weight, _) in parts.items()}
        self.parts = nn.ModuleDict({name: loss for name, (_, loss) in parts.items()})
        self._kernels: Setting = "auto"

    def use_kernels(self, setting: Setting) -> None:
        """Choose the arithmetic, as hardware.kernels does."""
        self._kernels = setting

    @property
    def needs_full_size(self) -> bool:
        """Whether a part is no sum over pixels, so that all logits must exist at the labels' size."""
        return not all(isinstance(part, SumLoss) for part in self.parts.values())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C, H, W) and labels (B, H, W) of any integer type -> scalar fp32 (fp64 for fp64 logits)."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        labels = labels.long()
        return self._sum({name: part(logits, labels) for name, part in self.parts.items()}).to(logits.dtype)

    def of_coarse(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same loss of logits (B, C, h, w) that are upsampled to the labels' size (B, H, W).

        Where all parts are sums over pixels the full-size logits never exist (losses/streamed.py).
        """
        parts = {name: part for name, part in self.parts.items() if isinstance(part, SumLoss)}
        kernels = select_arithmetic(self._kernels, logits.device)
        if kernels != "cpu" and all(isinstance(part, CrossEntropyLoss | DiceLoss) for part in self.parts.values()):
            return self._from_sums(parts, self._joint_sums(logits, labels, kernels), logits)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.needs_full_size:
            size = (labels.shape[-2], labels.shape[-1])
            enlarged = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            return self.forward(enlarged, labels)

        def sums(enlarged: Tensor, own: Tensor) -> Tensor:
            return torch.cat([part.sums(enlarged, own).flatten() for part in parts.values()])

        return self._from_sums(parts, streamed_sums(logits, labels, sums), logits)

    def _from_sums(self, parts: dict[str, SumLoss], sums: Tensor, logits: Tensor) -> Tensor:
        """The loss from the sums of all parts, one after the other, of this rank: reduced together."""
        reduce = next(iter(parts.values())).reduce
        shapes = [part.sums_shape(logits.shape[1]) for part in parts.values()]
        own = torch.split(reduce(sums), [math.prod(shape) for shape in shapes])
        pairs = zip(parts.items(), own, shapes, strict=True)
        values = {name: part.value(one.view(shape)) for (name, part), one, shape in pairs}
        return self._sum(values).to(torch.promote_types(logits.dtype, torch.float32))

    def _joint_sums(self, logits: Tensor, labels: Tensor, kernels: Arithmetic) -> Tensor:
        """The sums of all parts, from one softmax."""
        of_pixels: dict[type, SumLoss] = {type(part): part for part in self.parts.values() if isinstance(part, SumLoss)}
        entropy = of_pixels.get(CrossEntropyLoss)
        smoothing = entropy.label_smoothing if isinstance(entropy, CrossEntropyLoss) else 0.0
        weights = None if entropy is None else entropy.class_weights
        ignore_index = next(iter(of_pixels.values())).ignore_index
        joint = loss_sums(logits, labels, weights, smoothing, ignore_index, kernels)
        of_entropy, of_dice = joint[:2], joint[2:]
        return torch.cat(
            [of_entropy if isinstance(part, CrossEntropyLoss) else of_dice for part in self.parts.values()]
        )

    def of_outputs(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of a model's logits, plus that of its auxiliary logits times their weight."""
        logits, *auxiliary = outputs
        loss = self.of_coarse(logits, labels)
        for other in auxiliary:
            loss = loss + self.auxiliary_weight * self.of_coarse(other, labels)
        return loss

    def _sum(self, values: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


def build_loss(config: LossConfig, num_classes: int, ignore_index: int, reduce: Reduce = no_reduce) -> WeightedSum:
    """Build the loss that `config.type` names.

    Args:
        reduce: differentiable sum over ranks; the default is for one process.

    Raises:
        ConfigError: the number of class weights is not the number of classes.
    """
    weights = None
    if config.class_weights is not None:
        assert not isinstance(config.class_weights, str), "rules are resolved before (training/plan.py)"
        config.refuse_other_classes(num_classes)
        weights = torch.tensor(config.class_weights)
    shared: dict[str, Any] = {"class_weights": weights, "ignore_index": ignore_index, "reduce": reduce}
    cross_entropy = CrossEntropyLoss(label_smoothing=config.label_smoothing, **shared)
    dice = DiceLoss(smooth=config.dice_smooth, **shared)
    focal = FocalLoss(gamma=config.focal_gamma, **shared)
    parts: dict[str, dict[str, tuple[float, nn.Module]]] = {
        "ce": {"ce": (1.0, cross_entropy)},
        "dice": {"dice": (1.0, dice)},
        "ce_dice": {"ce": (config.ce_weight, cross_entropy), "dice": (config.dice_weight, dice)},
        "focal": {"focal": (1.0, focal)},
        "focal_dice": {"focal": (config.ce_weight, focal), "dice": (config.dice_weight, dice)},
        "lovasz": {"lovasz": (1.0, LovaszSoftmaxLoss(**shared))},
        "ohem": {"ohem": (1.0, OhemLoss(threshold=config.ohem_threshold, min_share=config.ohem_min_share, **shared))},
        "boundary_ce": {
            "boundary_ce": (
                1.0,
                BoundaryCrossEntropyLoss(radius=config.boundary_radius, weight=config.boundary_weight, **shared),
            )
        },
    }
    return WeightedSum(parts[config.type], config.auxiliary_weight)
