"""An optimizer step whose result the host has not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: global loss, gradient norm before clipping (None when skipped), whether it was applied."""

    loss: float
    grad_norm: float | None
    applied: bool


class LaunchedStep:
    """A step that is queued on the device.

    Its numbers are on their way to the host, behind it: reading them a step later waits for nothing.

    Attributes:
        is_finished: it ran on the CPU, and its numbers are there.

    Args:
        loss, norm: scalars on the device.
        diverged: whether the update was left out, on the device.
        refuse: raises the error of a step that was not finite, given its loss and norm.
    """

    def __init__(
        self, loss: Tensor, norm: Tensor, diverged: Tensor, refuse: Callable[[float, float], StepResult]
    ) -> None:
        numbers = torch.stack([loss.detach().double(), norm.double(), diverged.double()])
        self._refuse = refuse
        self._arrival: Any = None
        if numbers.is_cuda:
            self._numbers = torch.empty(3, dtype=torch.float64, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            event: Any = torch.cuda.Event
            self._arrival = event()
            self._arrival.record()
        else:
            self._numbers = numbers
        self.is_finished = self._arrival is None

    def result(self) -> StepResult:
        """What the step gave.

        Raises:
            TrainingDiverged: it was not finite, and changed nothing.
        """
        if self._arrival is not None:
            self._arrival.synchronize()
        loss, norm, diverged = self._numbers.tolist()
        return self._refuse(loss, norm) if diverged else StepResult(loss, norm, True)


class FinishedStep:
    """A step that the host has waited for, as DeepSpeed's loss scaling makes it."""

    is_finished = True

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        """What the step gave."""
        return self._result
