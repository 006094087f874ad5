"""The optimizer and its parameter groups: no decay on norms and biases, learning rates of the head and by depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segformer_spark.config.schema import OptimizerConfig
from segformer_spark.models.interface import SegmentationModel


def parameter_groups(model: SegmentationModel, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters with "name", "weight_decay" and "lr_multiplier"; empty ones are left out.

    Vectors and scalars (biases, norm weights) are not decayed, as in the paper's recipe. With `layer_decay` d, a block
    n blocks away from the head has d^n of the learning rate (Clark et al. 2020, section 3.1).
    """
    distances = model.distances_from_head()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            distance = distances[name]
            if config.layer_decay == 1:
                distance = min(distance, 1)
            groups.setdefault((distance, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": _group_name(distance, config) + ("" if decayed else "_no_decay"),
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr_multiplier": config.layer_decay**distance if distance else config.head_lr_multiplier,
            "lr": config.lr,
        }
        for (distance, decayed), parameters in sorted(groups.items(), key=_group_order)
    ]


def _group_name(distance: int, config: OptimizerConfig) -> str:
    if distance == 0:
        return "head"
    return "encoder" if config.layer_decay == 1 else f"encoder_minus_{distance}"


def _group_order(item: tuple[tuple[int, bool], list[nn.Parameter]]) -> tuple[int, bool]:
    (distance, decayed), _ = item
    return -distance, decayed


def build_optimizer(model: SegmentationModel, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """torch's fused optimizer, one pass over the weights; DeepSpeed's versions compile on the node at first use."""
    groups, fused = parameter_groups(model, config), device.type in ("cpu", "cuda")
    if config.type == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    build = torch.optim.AdamW if config.type == "adamw" else torch.optim.Adam
    return build(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer of `build_optimizer` keeps of each parameter, in the parameter's shape."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def num_state_tensors(config: OptimizerConfig) -> int:
    """How many tensors that is."""
    return 2 if config.type != "sgd" else int(config.momentum > 0)
