"""The custom operations of this package: Triton on a GPU, their plain formula on a CPU.

Each kernel's file registers an operation in torch.ops.segformer_spark with its plain formula, its Triton kernel, the
shapes of its results and its cost. Under TRITON_INTERPRET=1 the kernel runs on a CPU, too, in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from segformer_spark.kernels.cost import KERNEL_COSTS, Cost

try:
    import triton
    from triton import language
except ImportError:  # torch's builds without CUDA bring no Triton
    triton = language = None

tl: Any = language
"""What kernels are written in."""

_LIBRARY: Any = torch.library.Library("segformer_spark", "DEF")  # type: ignore[no-untyped-call]

NO_TRITON = triton is None


def jit(function: Callable[..., Any]) -> Any:
    """A Triton kernel; the function itself where there is no Triton, which nothing calls."""
    return function if NO_TRITON else triton.jit(function)


@jit
def dot(left, right, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + left @ right, in fp32. WIDEN is for the interpreter, whose products take bf16 for integers."""
    if WIDEN:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


def dot_options(dtype: torch.dtype) -> dict[str, Any]:
    """How `dot` multiplies values of a type."""
    tf32 = dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {"PRECISION": "tf32" if tf32 else "ieee", "WIDEN": interpreting()}


@dataclass(frozen=True)
class Operation:
    """An operation as it was registered.

    Attributes:
        plain: its formula in torch.
        fused: its Triton kernel.
        multiplies: whether it multiplies matrices, for which Triton wants tensor cores of Ampere or later.
    """

    name: str
    plain: Callable[..., Any]
    fused: Callable[..., Any]
    multiplies: bool


OPERATIONS: dict[str, Operation] = {}

_REPLACED: dict[str, str] = {}
"""{operation: why it does not run on GPUs}."""

_WITH_PRODUCTS = (8, 0)
"""Compute capability of Ampere."""


def register(
    schema: str,
    *,
    plain: Callable[..., Any],
    fused: Callable[..., Any],
    shapes: Callable[..., Any],
    cost: Callable[..., Cost],
    multiplies: bool = False,
) -> None:
    """Add an operation to torch.ops.segformer_spark.

    Args:
        schema: name and arguments as torch.library writes them.
        shapes: empty results for given arguments, for fake tensors.
    """
    name = schema.partition("(")[0]
    OPERATIONS[name] = Operation(name, plain, fused, multiplies)
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, lambda *args: _on_cpu(fused, plain, shapes)(*args), "CPU")
    _LIBRARY.impl(name, fused, "CUDA")
    torch.library.register_fake(f"segformer_spark::{name}", shapes, lib=_LIBRARY)
    KERNEL_COSTS[name] = cost


def _on_cpu(fused: Callable[..., Any], plain: Callable[..., Any], shapes: Callable[..., Any]) -> Callable[..., Any]:
    if _ONLY_SHAPES:
        return shapes
    return fused if interpreting() else plain


_ONLY_SHAPES: list[bool] = []


@contextmanager
def only_shapes() -> Iterator[None]:
    """Let operations on a CPU return memory that nothing has filled, as after the launch of a kernel: to measure what
    the host does."""
    _ONLY_SHAPES.append(True)
    try:
        yield
    finally:
        _ONLY_SHAPES.pop()


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return not NO_TRITON and bool(triton.knobs.runtime.interpret)


def runs_fused(names: Sequence[str], device: torch.device) -> bool:
    """Whether all of these operations run on a device; else plain torch takes their place."""
    if device.type == "cpu":
        return True
    able = not NO_TRITON and torch.cuda.get_device_capability(device) >= _WITH_PRODUCTS
    return all(name not in _REPLACED and (able or not OPERATIONS[name].multiplies) for name in names) and not NO_TRITON


def replace_by_plain(reasons: Mapping[str, str]) -> None:
    """Let plain torch take the place of these operations on GPUs, in this process."""
    _REPLACED.update(reasons)


def replaced() -> dict[str, str]:
    """{operation: why plain torch takes its place on GPUs}."""
    return dict(_REPLACED)
