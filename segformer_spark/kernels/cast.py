"""Parameters in the type that layers compute in, converted together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Stacks:
    """Which parameters are stacked into one, and where each lies in the memory of all.

    Args:
        groups: shapes of the parameters of each group, which are stacked along their first side.
    """

    def __init__(self, groups: Sequence[Sequence[torch.Size]]) -> None:
        self.shapes = [shape for group in groups for shape in group]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.rows = [[shape[0] for shape in group] for group in groups]
        self.stacked = [torch.Size((sum(rows), *group[0][1:])) for rows, group in zip(self.rows, groups, strict=True)]
        self.stacked_sizes = [math.prod(shape) for shape in self.stacked]
        self.total = sum(self.sizes)


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, stacks: Stacks, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.rows = parameters[0].dtype, stacks.rows
        ctx.set_materialize_grads(False)
        memory = torch.empty(stacks.total, dtype=dtype, device=parameters[0].device)
        parts = _parts(memory, stacks.sizes, stacks.shapes)
        torch._foreach_copy_(parts, list(parameters))
        own, copies, start = iter(parts), [], 0
        for rows, shape, size in zip(stacks.rows, stacks.stacked, stacks.stacked_sizes, strict=True):
            first, *_ = (next(own) for _ in rows)
            copies.append(first if len(rows) == 1 else memory[start : start + size].view(shape))
            start += size
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        known = [grad.contiguous() for grad in grads if grad is not None]
        wide: Iterable[Tensor] = ()
        if known:
            sizes = [grad.numel() for grad in known]
            memory = torch.empty(sum(sizes), dtype=ctx.dtype, device=known[0].device)
            wide = _parts(memory, sizes, [grad.shape for grad in known])
            torch._foreach_copy_(wide, known)
        found: list[Tensor | None] = []
        rest = iter(wide)
        for grad, rows in zip(grads, ctx.rows, strict=True):
            if grad is None:
                found += [None] * len(rows)
            elif len(rows) == 1:
                found.append(next(rest))
            else:
                found += next(rest).split_with_sizes(rows)
        return None, None, *found


def _parts(memory: Tensor, sizes: Sequence[int], shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = memory.split_with_sizes(sizes)
    return [part if len(shape) == 1 else part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def cast_together(parameters: Sequence[Tensor], stacks: Stacks, dtype: torch.dtype) -> list[Tensor]:
    """The parameters in `dtype`, stacked in groups; gradients come back in the parameters' own type.

    All are parts of one piece of memory, filled by kernels that take many tensors each. Parameters that have the type
    are not copied, but for stacks of several.

    Args:
        parameters: contiguous, all of one type, in the order of `stacks`.
    """
    if parameters[0].dtype == dtype:
        own = iter(parameters)
        return [next(own) if len(rows) == 1 else torch.cat([next(own) for _ in rows]) for rows in stacks.rows]
    copies: tuple[Tensor, ...] = _CastTogether.apply(dtype, stacks, *parameters)
    return list(copies)
