"""The gradient's norm, clipping and the refusal of a step that is not finite, all on the device.

DeepSpeed's own clipping reads the host for every parameter group. Here the averaged gradients have one norm, and the
optimizer is handed two numbers where they lie: a divisor, and whether to leave out the update. Both are arguments of
torch's fused optimizers, made for loss scaling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segformer_spark.distributed.process_group import Group

_EPS = 1e-6
"""Added to the norm, as torch.nn.utils.clip_grad_norm_ does."""


class DeviceClipping:
    """Clips what DeepSpeed has averaged, for any stage.

    Attributes:
        diverged: whether a step was not finite; from then on no update is applied. On the device.

    Args:
        engine: DeepSpeed's, with its own clipping and norm switched off.
        limit: largest norm; 0 for none.
    """

    def __init__(self, engine: Any, group: Group, limit: float) -> None:
        self._engine, self._group, self._limit = engine, group, limit
        self._partitioned = bool(engine.zero_optimization())
        self._optimizer = engine.optimizer.optimizer if self._partitioned else engine.optimizer
        self.diverged = torch.zeros((), dtype=torch.bool, device=group.device)
        self._one = torch.ones((), device=group.device)

    @torch.no_grad()
    def prepare(self, loss: Tensor) -> Tensor:
        """Tell the optimizer what to do with the averaged gradients; returns their norm, fp32. Collective.

        Args:
            loss: of the step, the same on every rank.
        """
        norm = self._norm()
        self.diverged = self.diverged | ~torch.isfinite(norm) | ~torch.isfinite(loss)
        divisor = ((norm + _EPS) / self._limit).clamp_min(1.0) if self._limit else self._one
        # What is left out is not divided, either: a divisor that is no number would be.
        self._optimizer.grad_scale = torch.where(self.diverged, self._one, divisor)
        self._optimizer.found_inf = self.diverged.to(torch.float32)
        return norm

    def _norm(self) -> Tensor:
        gradients = self._gradients()
        square = torch.zeros((), dtype=torch.float64, device=self._group.device)
        if gradients:
            square = torch.stack(torch._foreach_norm(gradients, 2.0)).double().square().sum()
        total = self._group.sum(square) if self._partitioned and self._group.world_size > 1 else square
        return total.sqrt().float()

    def _gradients(self) -> list[Tensor]:
        """This rank's part of the averaged gradients, in fp32."""
        if not self._partitioned:
            return [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        parts = [own for group in self._engine.optimizer.averaged_gradients.values() for own in group or ()]
        return [part.float() for part in parts if part is not None]
