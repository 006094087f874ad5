"""Parameters in the type that layers compute in, converted together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = parameters[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(_copied(parameters, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        known = [grad.contiguous() for grad in grads if grad is not None]
        wide = iter(_copied(known, ctx.dtype) if known else ())
        return None, *(None if grad is None else next(wide) for grad in grads)


def _copied(values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies in `dtype`, parts of one piece of memory: one allocation, and kernels that take many tensors each."""
    memory = torch.empty(sum(value.numel() for value in values), dtype=dtype, device=values[0].device)
    parts = memory.split_with_sizes([value.numel() for value in values])
    copies = [part if value.ndim == 1 else part.view(value.shape) for part, value in zip(parts, values, strict=True)]
    torch._foreach_copy_(copies, list(values))
    return copies


def cast_together(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of `parameters` in `dtype`, and their gradients back in the parameters' own, in a few kernels.

    The parameters themselves where they have that type.

    Args:
        parameters: contiguous, all of one type.
    """
    if parameters[0].dtype == dtype:
        return list(parameters)
    copies: tuple[Tensor, ...] = _CastTogether.apply(dtype, *parameters)
    return list(copies)
