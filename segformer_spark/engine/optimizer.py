"""AdamW's parameter groups: no decay on norms and biases, a learning-rate multiplier on the decode head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segformer_spark.config.schema import OptimizerConfig
from segformer_spark.models.segformer import SegFormer


def parameter_groups(model: SegFormer, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters with "name", "weight_decay" and "lr_multiplier"; empty ones are left out.

    Vectors and scalars (biases, norm weights) are not decayed, as in the paper's recipe.
    """
    head = {id(parameter) for parameter in model.head_parameters()}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            part = "head" if id(parameter) in head else "encoder"
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": f"{part}{'' if decayed else '_no_decay'}",
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr_multiplier": config.head_lr_multiplier if part == "head" else 1.0,
            "lr": config.lr,
        }
        for (part, decayed), parameters in sorted(groups.items())
    ]


def build_optimizer(model: SegFormer, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """torch's AdamW: DeepSpeed's fused and CPU versions compile on the node at first use."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True if device.type == "cuda" else None,
    )
