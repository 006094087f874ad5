"""The training state as plain tensors by parameter name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class EngineState:
    """Everything that the optimizer and the model remember.

    Attributes:
        parameters: fp32 master weights by name.
        buffers: batch-norm statistics by name.
        moments: {key of the optimizer's state: {name: tensor}}, of AdamW "exp_avg" and "exp_avg_sq"; empty before the
            first step.
        optimizer_step: updates that were applied.
        average: averaged weights and buffers by name, None without averaging.
        loss_scaler: counters of the dynamic loss scale under fp16, else None.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    optimizer_step: int
    loss_scaler: dict[str, float] | None
    average: dict[str, Tensor] | None = None
