"""Parameters in the type that layers compute in, converted together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, lengths: Sequence[int], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.lengths = parameters[0].dtype, lengths
        ctx.rows = [len(parameter) for parameter in parameters]
        ctx.set_materialize_grads(False)
        return tuple(_copied(_grouped(parameters, lengths), dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        known = [grad.contiguous() for grad in grads if grad is not None]
        wide = iter(_copied([[grad] for grad in known], ctx.dtype) if known else ())
        found: list[Tensor | None] = []
        for grad, rows in zip(grads, _grouped(ctx.rows, ctx.lengths), strict=True):
            if grad is None:
                found += [None] * len(rows)
            elif len(rows) == 1:
                found.append(next(wide))
            else:
                found += next(wide).split_with_sizes(rows)
        return None, None, *found


def _grouped(values: Sequence[Any], lengths: Sequence[int]) -> list[list[Any]]:
    own = iter(values)
    return [[next(own) for _ in range(length)] for length in lengths]


def _copied(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Copies in `dtype`, each of a group's tensors one after the other: all are parts of one piece of memory, filled by
    kernels that take many tensors each."""
    values = [value for group in groups for value in group]
    memory = torch.empty(sum(value.numel() for value in values), dtype=dtype, device=values[0].device)
    parts = memory.split_with_sizes([value.numel() for value in values])
    copies = [part if value.ndim == 1 else part.view(value.shape) for part, value in zip(parts, values, strict=True)]
    torch._foreach_copy_(copies, values)
    stacked, start = [], 0
    for group, own in zip(groups, _grouped(copies, [len(group) for group in groups]), strict=True):
        size = sum(value.numel() for value in group)
        shape = (-1, *group[0].shape[1:])
        stacked.append(own[0] if len(group) == 1 else memory[start : start + size].view(shape))
        start += size
    return stacked


def cast_together(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Of each group of parameters its tensors in `dtype`, stacked along their first side; gradients come back in the
    parameters' own type. In a few kernels, and none for a single parameter that has the type.

    Args:
        groups: contiguous parameters, all of one type.
    """
    if groups[0][0].dtype == dtype:
        return [group[0] if len(group) == 1 else torch.cat([*group]) for group in groups]
    parameters = [parameter for group in groups for parameter in group]
    copies: tuple[Tensor, ...] = _CastTogether.apply(dtype, tuple(len(group) for group in groups), *parameters)
    return list(copies)
