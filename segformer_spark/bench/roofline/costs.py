"""What an operation costs: floating-point operations, bytes in and out, kernels.

Every tensor counts once, with its distinct values: what a kernel must move if its caches were perfect. An operation
with several passes over a map (the statistics of a norm, then the norm) is cheaper here than on a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from segformer_spark.kernels.cost import KERNEL_COSTS, Cost

aten = torch.ops.aten


FREE = Cost(launches=0)


def operation_cost(op: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Cost:
    """The cost of a dispatched operation, from its arguments and result.

    Raises:
        KeyError: an operation of this package that has registered no cost.
    """
    if op.namespace == "segformer_spark":
        return KERNEL_COSTS[op._opname](*args, **kwargs)
    if op.namespace not in ("aten", "torchvision") or op.overloadpacket in _NO_KERNEL:
        return FREE
    inputs = list(_distinct(tree_leaves((args, kwargs))))
    outputs = list(_distinct(tree_leaves(result)))
    changed = _changed(op, args, kwargs)
    known = {_storage(tensor) for tensor in inputs}
    fresh = [tensor for tensor in outputs if _storage(tensor) not in known]
    if not fresh and not changed:
        return FREE  # a view
    flops, product = _flops(op, args, result)
    read = _read(op, args, kwargs, inputs, fresh, changed)
    written = sum(map(_bytes, fresh)) + sum(map(_bytes, changed)) if op not in _SPARSE_WRITES else _bytes(args[2])
    return Cost(flops, read, written, _launches(op, args), product)


_NO_KERNEL = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.alias,
    aten.lift_fresh,
    aten._unsafe_view,
    aten._local_scalar_dense,
    aten.is_same_size,
}
"""Memory without a kernel, and what only hands a tensor on. A host read counts as a host sync, not as kernel time."""

_OVERWRITTEN = {
    aten.copy_,
    aten.zero_,
    aten.fill_,
    aten.random_,
    aten.uniform_,
    aten.normal_,
    aten.bernoulli_,
    aten._foreach_copy_,
    aten._foreach_zero_,
}
"""Operations in place that do not read what they change."""

_SPARSE_WRITES = {aten.index_put_.default, aten._index_put_impl_.default}

_PICKING = {aten.gather, aten.index_select, aten.index, aten.embedding}
"""They read as much of their source as they return."""


def _read(
    op: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[Tensor],
    fresh: Sequence[Tensor],
    changed: Sequence[Tensor],
) -> float:
    packet = op.overloadpacket
    if packet in _PICKING:
        return sum(map(_bytes, fresh)) + sum(_bytes(tensor) for tensor in inputs if tensor is not args[0])
    overwrites = packet in _OVERWRITTEN or (packet is aten.baddbmm_ and kwargs.get("beta") == 0)
    unread = {id(tensor) for tensor in changed} if overwrites else set()
    if packet in (aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.new_zeros, aten.new_full):
        return 0.0
    return sum(_bytes(tensor) for tensor in inputs if id(tensor) not in unread)


def _changed(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to, by its schema."""
    found: list[Any] = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            found += tree_leaves(value)
    return list(_distinct(found))


def _distinct(values: Sequence[Any]) -> Iterator[Tensor]:
    seen: set[tuple[Any, ...]] = set()
    for value in values:
        if isinstance(value, Tensor):
            key = (_storage(value), value.storage_offset(), value.shape, value.stride())
            if key not in seen:
                seen.add(key)
                yield value


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> float:
    """Of the distinct values of a tensor: dimensions of stride 0 repeat them."""
    sides = (side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return float(math.prod(sides) * tensor.itemsize) if tensor.numel() else 0.0


_Flops = Callable[[Sequence[Any], Any], tuple[float, Tensor]]


def _mm(args: Sequence[Any], result: Any) -> tuple[float, Tensor]:
    return 2.0 * result.numel() * args[0].shape[-1], args[0]


def _addmm(args: Sequence[Any], result: Any) -> tuple[float, Tensor]:
    return 2.0 * result.numel() * args[1].shape[-1], args[1]


def _convolution(args: Sequence[Any], result: Any) -> tuple[float, Tensor]:
    return 2.0 * result.numel() * math.prod(args[1].shape[1:]), args[1]


def _convolution_backward(args: Sequence[Any], result: Any) -> tuple[float, Tensor]:
    """Each of the two gradients takes the multiply-adds of the forward pass, with groups, too.

    torch.utils.flop_counter takes the weight gradient of a depthwise convolution for that of a dense one.
    """
    grad, weight, mask = args[0], args[2], args[10]
    return 2.0 * grad.numel() * math.prod(weight.shape[1:]) * (bool(mask[0]) + bool(mask[1])), weight


def _attention(products: int) -> _Flops:
    def flops(args: Sequence[Any], result: Any) -> tuple[float, Tensor]:
        queries, keys = (args[0], args[1]) if products == 2 else (args[1], args[2])
        return 2.0 * products * queries.numel() * keys.shape[-2], queries

    return flops


_FLOPS: dict[Any, _Flops] = {
    aten.mm: _mm,
    aten.bmm: _mm,
    aten.addmm: _addmm,
    aten.addmm_: _addmm,
    aten.baddbmm: _addmm,
    aten.baddbmm_: _addmm,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    # Two products forward; backward five, one of them again (Dao et al. 2022, appendix B.4).
    aten._scaled_dot_product_flash_attention_for_cpu: _attention(2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention(5),
}


def _flops(op: Any, args: Sequence[Any], result: Any) -> tuple[float, torch.dtype | None]:
    formula = _FLOPS.get(op.overloadpacket)
    if formula is None:
        return 0.0, None
    flops, factor = formula(args, result)
    weight = args[2] if op.overloadpacket is aten.convolution_backward else args[1]
    is_convolution = formula in (_convolution, _convolution_backward)
    depthwise = is_convolution and weight.shape[1] == 1  # no product of matrices: not for tensor cores
    return flops, None if depthwise else factor.dtype


_TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_CHUNK, _CHUNKS_PER_LAUNCH = 65536, 320
"""depth_to_max_tensors, kChunkSize and depth_to_max_blocks of aten/src/ATen/native/cuda/MultiTensorApply.cuh."""


def _launches(op: Any, args: Sequence[Any]) -> int:
    name = op.overloadpacket.__name__
    if name.startswith(("_foreach_", "_fused_adam")):
        lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
        chunks: int = sum(-(-tensor.numel() // _CHUNK) for tensor in lists[0])
        tensors: int = -(-len(lists[0]) // _TENSORS_PER_LAUNCH[min(len(lists), 5)])
        return max(tensors, -(-chunks // _CHUNKS_PER_LAUNCH))
    if op is aten.convolution_backward.default:
        return int(sum(args[10]))
    number: int = _SEVERAL.get(op.overloadpacket, 1)
    return number


_SEVERAL: dict[Any, int] = {
    aten.native_layer_norm_backward: 2,
    aten.native_batch_norm: 2,
    aten.native_batch_norm_backward: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 2,
}
"""Operations that CUDA computes with more than one kernel."""
