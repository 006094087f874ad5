"""Every operation that a block dispatches: its cost, the memory that lives, and where the host waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segformer_spark.bench.roofline.costs import operation_cost
from segformer_spark.kernels.cost import Cost

aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """A dispatched operation."""

    name: str
    cost: Cost


@dataclass
class Trace:
    """What a block did.

    Attributes:
        operations: that start kernels, in order.
        dispatches: all operations, views and empty tensors, too: each costs the host time.
        host_syncs: {name: how often} of operations after which the host has waited for the device.
        peak_bytes: the most memory that tensors held at a time, those that existed before included.
    """

    operations: list[Operation] = field(default_factory=list)
    dispatches: int = 0
    host_syncs: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    _hidden: bool = False
    _alive: dict[int, tuple[Any, int]] = field(default_factory=dict, repr=False)

    def hold(self, values: Sequence[Any]) -> None:
        """Count the memory of tensors among these values from now on, as long as they live."""
        new = False
        for value in values:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._alive or self._alive[storage._cdata][0].expired():
                    reference: Any = StorageWeakRef
                    self._alive[storage._cdata] = (reference(storage), storage.nbytes())
                    new = True
        if new:
            self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
            living = sum(size for _, size in self._alive.values())
            self.peak_bytes = max(self.peak_bytes, living)

    @property
    def launches(self) -> int:
        return sum(operation.cost.launches for operation in self.operations)

    @property
    def moved_bytes(self) -> float:
        return sum(operation.cost.read + operation.cost.written for operation in self.operations)

    @property
    def flops(self) -> float:
        return sum(operation.cost.flops for operation in self.operations)


@contextmanager
def tracing(existing: Sequence[Tensor] = (), *, host_calls: bool = True) -> Iterator[Trace]:
    """Record what the block dispatches.

    Args:
        existing: tensors that hold memory before it.
        host_calls: look at Python's calls, too, for copies to and from the host; torch.compile takes that for another
            program, and compiles anew.
    """
    trace = Trace()
    trace.hold(existing)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", _counting(trace, "cuda.synchronize")))
        if host_calls:
            stack.enter_context(_HostCalls(trace))
        stack.enter_context(_Dispatched(trace))
        yield trace


@contextmanager
def hidden_from(trace: Trace) -> Iterator[None]:
    """What the block dispatches is not recorded."""
    trace._hidden = True
    try:
        yield
    finally:
        trace._hidden = False


def _counting(trace: Trace, name: str) -> Callable[..., None]:
    def called(*args: Any, **kwargs: Any) -> None:
        trace.host_syncs[name] += 1

    return called


_SYNCHRONISING = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.bincount: "bincount",
    aten.masked_select: "masked_select",
    aten.unique_dim: "unique",
    aten._unique: "unique",
    aten._unique2: "unique",
    aten.unique_consecutive: "unique_consecutive",
    aten.equal: "equal",
    aten.histc: "histc",
}
"""Operations whose result or its size is read on the host."""

_INDEXING = (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_, aten._unsafe_index)


def host_sync(op: Any, args: Sequence[Any]) -> str | None:
    """The name of an operation that makes the host wait on a GPU, or None."""
    packet = op.overloadpacket
    if packet is aten.repeat_interleave and op._overloadname == "Tensor":
        return "repeat_interleave"
    if packet in _INDEXING and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    ):
        return "boolean index"
    return _SYNCHRONISING.get(packet)


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile may be used beside this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        waits = host_sync(func, args)
        result = func(*args, **given) if waits is None else _without_data(func, args, given)
        if func.namespace in ("prim", "profiler") or self._trace._hidden:
            return result
        self._trace.dispatches += 1
        if waits is not None:
            self._trace.host_syncs[waits] += 1
        cost = operation_cost(func, args, given, result)
        if cost.launches:
            self._trace.operations.append(Operation(f"{func.namespace}.{func._opname}", cost))
        self._trace.hold(tree_leaves(result))
        return result


def _without_data(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Results that depend on values, of fake tensors that have none: as many as there can be."""
    packet = func.overloadpacket
    if packet is aten._local_scalar_dense:
        return 1.0 if args[0].is_floating_point() else 1
    if packet is aten.bincount:
        return args[0].new_zeros(kwargs.get("minlength", args[2] if len(args) > 2 else 1))
    if packet is aten.equal:
        return True
    if packet is aten.index:
        masks = [index for index in args[1] if index is not None]
        return args[0].flatten(0, masks[0].ndim - 1).clone() if masks[0].dtype is torch.bool else func(*args, **kwargs)
    return func(*args, **kwargs)


_READS = {Tensor.cpu: "cpu", Tensor.numpy: "numpy", Tensor.tolist: "tolist"}


_FROM_HOST = {torch.tensor: "tensor(device)", torch.as_tensor: "as_tensor(device)"}
"""Numbers from pageable memory to a device: a copy that the host waits for."""


class _HostCalls(TorchFunctionMode):
    """Copies to the host, which a tensor on the CPU does without dispatching anything."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = _READS.get(func)
        if func is Tensor.to and not given.get("non_blocking"):
            named = [leaf for leaf in tree_leaves((args[1:], given)) if isinstance(leaf, str | torch.device)]
            name = "to(cpu)" if any(torch.device(leaf).type == "cpu" for leaf in named) else None
        if func in _FROM_HOST and given.get("device") is not None and not isinstance(args[0], Tensor):
            name = _FROM_HOST[func]
        if name is not None:
            self._trace.host_syncs[name] += 1
        return func(*args, **given)
