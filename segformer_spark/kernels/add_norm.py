"""The residual sum and the layer norm after it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def add_norm(
    tokens: Tensor, branch: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """total = tokens + scale * branch, and the layer norm of it (Ba et al. 2016, equation 4).

    Args:
        tokens: (N, C), the residual stream of B images, one after the other.
        branch: the same shape; its type is that of the normalised tokens.
        scale: (B,), stochastic depth's factor of each image; None for 1.
        weight, bias: (C,), the norm's.

    Returns:
        The sum in the type of `tokens`, and its norm in that of `branch`; statistics are fp32.
    """
    branch, dtype = branch.to(tokens.dtype), branch.dtype
    if scale is None:
        total = tokens + branch
    else:
        shape = (len(scale), -1, tokens.shape[1])
        factor = scale.to(tokens.dtype).view(-1, 1, 1)
        total = torch.addcmul(tokens.view(shape), branch.view(shape), factor).view(tokens.shape)
    return total, norm(total, weight, bias, eps, dtype)


def norm(tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The layer norm of tokens (N, C) in `dtype`."""
    own = (weight.to(tokens.dtype), bias.to(tokens.dtype))
    return functional.layer_norm(tokens, tokens.shape[-1:], *own, eps).to(dtype)
