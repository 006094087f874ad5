"""What the kernels of this package cost: each registers a function of its arguments, which the estimates ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """Bytes and floating-point operations of a call of an operation.

    Attributes:
        flops: 2 per multiply-add.
        read, written: bytes that it loads and stores, each distinct value once.
        launches: kernels that it starts.
        product: the type of the factors where tensor cores can compute it, None for everything else.
    """

    flops: float = 0.0
    read: float = 0.0
    written: float = 0.0
    launches: int = 1
    product: torch.dtype | None = None


def nbytes(*values: Any) -> float:
    """Of all tensors among the arguments."""
    return float(sum(value.nbytes for value in values if isinstance(value, torch.Tensor)))


KERNEL_COSTS: dict[str, Callable[..., Cost]] = {}
"""By the operation's name in torch.ops.segformer_spark."""
