"""Tensors that depend on nothing but numbers: made once, and kept on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVarTuple, Unpack

import torch
from torch import Tensor

Values = TypeVarTuple("Values")


def device_constant(function: Callable[[Unpack[Values]], Tensor]) -> Callable[[Unpack[Values]], Tensor]:
    """A function of hashable arguments that runs once for each; under a mode of fake tensors once for that mode."""

    @functools.lru_cache(maxsize=256)
    def made(mode: Any, *args: Any) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args)

    @functools.wraps(function)
    def constant(*args: *Values) -> Tensor:
        return made(torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE), *args)

    return constant
