"""What the kernels of this package cost: each registers a function of its arguments, which the estimates ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class KernelCost:
    """Bytes and floating-point operations of a call.

    Attributes:
        flops: 2 per multiply-add.
        read, written: bytes that it loads and stores, each distinct value once.
        launches: kernels that it starts.
        product: the type of the factors if tensor cores compute it.
    """

    flops: float
    read: float
    written: float
    launches: int = 1
    product: torch.dtype | None = None


def nbytes(*values: Any) -> float:
    """Of all tensors among the arguments."""
    return float(sum(value.nbytes for value in values if isinstance(value, torch.Tensor)))


KERNEL_COSTS: dict[str, Callable[..., KernelCost]] = {}
"""By the operation's name in torch.ops.segformer_spark."""
