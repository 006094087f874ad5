"""An exponential moving average of the weights (Polyak and Juditsky 1992; as in Tarvainen and Valpola 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d average + (1 - d) weights after every applied step, in fp32, whole on every rank.

    d is min(decay, (1 + t) / (10 + t)) at update t, so that the first weights are soon forgotten. Batch-norm statistics
    are averaged as weights are; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, dropped: Tensor | None = None) -> None:
        """Take in the model's weights after an optimizer step.

        Args:
            dropped: a scalar on the device, true if the step is to change nothing.
        """
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        live = model.state_dict()
        real = [name for name, value in live.items() if value.is_floating_point()]
        share = 1 - decay if dropped is None else torch.where(dropped, 0.0, 1 - decay)
        averages, weights = [self.values[name] for name in real], [live[name] for name in real]
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(averages, change)
        for name in live.keys() - set(real):  # counters
            value = live[name]
            self.values[name].copy_(value if dropped is None else torch.where(dropped, self.values[name], value))

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The average in the model for the duration of the block; the weights come back bit by bit."""
        live = model.state_dict()
        before = {name: value.clone() for name, value in live.items()}
        try:
            _copy(self.values, live)
            yield
        finally:
            _copy(before, live)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
