"""One process that does the work of several ranks: a batch of all their images, with each rank's random numbers.

Losses and batch norm are those of all ranks together anyway. What a rank draws for itself (dropout, stochastic depth)
is drawn here for each rank in turn, from its own seed, and laid where its images are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_IN_PLACE = {Tensor.random_, Tensor.bernoulli_, Tensor.uniform_}
_OF_INPUT = {functional.dropout, functional.dropout1d, functional.dropout2d}


class PlayedRanks(TorchFunctionMode):
    """While active, random tensors are drawn rank by rank, along their first axis."""

    def __init__(self, num_ranks: int) -> None:
        super().__init__()
        self.num_ranks, self._together = num_ranks, 1
        self._states: list[Tensor] = []

    def seed(self, seeds: Sequence[int], together: int = 1) -> None:
        """Begin a forward pass.

        Args:
            seeds: one for each rank.
            together: micro-batches that lie one after the other in the batch, each with the images of all ranks.
        """
        assert len(seeds) == self.num_ranks
        self._together, self._states = together, []
        for seed in seeds:
            torch.manual_seed(seed)
            self._states.append(torch.get_rng_state())

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._states or self.num_ranks == 1:
            return func(*args, **kwargs)
        if func is torch.rand:
            size = torch.Size(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            parts = self._drawn(lambda: func(self._own(size), **kwargs))
            return self._laid_out(parts, size)
        if func in _IN_PLACE:
            whole, *rest = args
            parts = self._drawn(lambda: func(whole.new_empty(self._own(whole.shape)), *rest, **kwargs))
            return whole.copy_(self._laid_out(parts, whole.shape))
        if func in _OF_INPUT and kwargs.get("training", True):
            # What dropout makes of ones is what it multiplies with.
            whole, *rest = args
            options = {key: value for key, value in kwargs.items() if key != "inplace"}
            parts = self._drawn(lambda: func(whole.new_ones(self._own(whole.shape)), *rest, **options))
            return whole * self._laid_out(parts, whole.shape)
        return func(*args, **kwargs)

    def _own(self, size: torch.Size) -> list[int]:
        """The size of one rank's part."""
        assert size[0] % (self.num_ranks * self._together) == 0, "every rank has as many images"
        return [size[0] // self.num_ranks, *size[1:]]

    def _drawn(self, draw: Callable[[], Tensor]) -> list[Tensor]:
        parts = []
        for rank, state in enumerate(self._states):
            torch.set_rng_state(state)
            parts.append(draw())
            self._states[rank] = torch.get_rng_state()
        return parts

    def _laid_out(self, parts: Sequence[Tensor], size: torch.Size) -> Tensor:
        rows = size[0] // (self.num_ranks * self._together)
        by_part = [part.view(self._together, rows, *size[1:]) for part in parts]
        return torch.stack(by_part, dim=1).reshape(size)
