"""CUDA's rules of autocast for tensors on a CPU, real or fake.

A fake CUDA tensor cannot go backward on a machine without GPU, and a CPU's rules differ (its norms and softmax compute
in bf16). The rules are read from the header of the installed torch, ATen/autocast_mode.h, and stand in the place of the
CPU's for the duration of a block.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from segformer_spark.errors import UserError

_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
_KEY = "AutocastCPU"
_NARROW = (torch.float16, torch.bfloat16)

Policy = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def cuda_rules() -> dict[str, list[str]]:
    """{policy: operations as "name" or "name.overload"}: "lower", "fp32", "fp32_out" (unless a type is asked for) and
    "promote".

    Raises:
        UserError: torch's header is missing or reads otherwise.
    """
    macros = {
        "lower": "AT_FORALL_LOWER_PRECISION_FP",
        "fp32": "AT_FORALL_FP32",
        "fp32_out": "AT_FORALL_FP32_SET_OPT_DTYPE",
        "promote": "AT_FORALL_PROMOTE",
    }
    try:
        text = _HEADER.read_text(encoding="utf-8").replace("\\\n", " ")
    except OSError as error:
        raise UserError(f"{_HEADER}: cannot be read ({error.strerror}): autocast's rules stand in it") from error
    rules = {}
    for policy, macro in macros.items():
        found = re.search(rf"#define {macro}\(_\)(.*)", text)
        if found is None:
            raise UserError(f"{_HEADER}: no {macro}: this version of torch ({torch.__version__}) is not known")
        rules[policy] = [".".join(re.split(r",\s*", entry)) for entry in re.findall(r"_\(([^)]*)\)", found[1])]
    return rules


@contextmanager
def cuda_rules_on_cpu(dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype` on the CPU, with CUDA's rules."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    cache: dict[int, tuple[Tensor, Tensor]] = {}
    policies: dict[str, Policy] = {
        "lower": lambda op, args, kwargs: op(*_lowered(args, dtype, cache), **_lowered(kwargs, dtype, cache)),
        "fp32": lambda op, args, kwargs: op(*_raised(args), **_raised(kwargs)),
        "fp32_out": _with_fp32_result,
        "promote": _promoted,
    }
    replaced: set[str] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a rule of the CPU is replaced is what is wanted
            for policy, names in cuda_rules().items():
                for name in names:
                    packet, _, overload = name.partition(".")
                    op = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
                    if op is not None:
                        library.impl(name, _kernel(op, policies[policy]), _KEY)
                        replaced.add(f"aten::{name}")
            for name in set(torch._C._dispatch_get_registrations_for_dispatch_key(_KEY)) - replaced:
                if name.startswith("aten::"):
                    library.impl(name.removeprefix("aten::"), torch.library.fallthrough_kernel, _KEY)
        with torch.autocast("cpu", dtype=dtype):
            yield
    finally:
        library._destroy()


def _kernel(op: Any, policy: Policy) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return policy(op, args, kwargs)

    return kernel


def _lowered(values: Any, dtype: torch.dtype, cache: dict[int, tuple[Tensor, Tensor]]) -> Any:
    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype in (torch.float64, dtype):
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        # A weight is cast once per forward pass.
        if id(tensor) not in cache:
            cache[id(tensor)] = (tensor, tensor.to(dtype))
        return cache[id(tensor)][1]

    return tree_map_only(Tensor, cast, values)


def _raised(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.dtype in _NARROW else tensor, values)


def _with_fp32_result(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first = next(value for value in args if isinstance(value, Tensor))
    positions = [argument.name for argument in op._schema.arguments]
    given = dict(zip(positions, args, strict=False)) | kwargs
    if first.dtype in _NARROW and given.get("dtype") is None:
        given["dtype"] = torch.float32
    return op(**given)


def _promoted(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if any(tensor.dtype is torch.float32 for tensor in tensors):
        return op(*_raised(args), **_raised(kwargs))
    return op(*args, **kwargs)
