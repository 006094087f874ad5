"""Runs in a process of its own under TRITON_INTERPRET=1: what the kernels give, and what they load and store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder

from segformer_spark.kernels.check import cases, difference, differences
from segformer_spark.kernels.cost import KERNEL_COSTS
from segformer_spark.kernels.registry import OPERATIONS

CPU = torch.device("cpu")


@contextmanager
def counting() -> Iterator[dict[str, dict[int, int]]]:
    """{"read" or "written": {address: bytes}} of what kernels touch."""
    touched: dict[str, dict[int, int]] = {"read": {}, "written": {}}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        for address in np.unique(pointers.data[mask.data.astype(bool)]):
            touched[kind][int(address)] = size

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load = counted_load
    InterpreterBuilder.create_masked_store = counted_store
    try:
        yield touched
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


def traffic() -> dict[str, list[float]]:
    """{operation: bytes read and written, counted and as its cost says}, of its first case."""
    found = {}
    for name, own in cases(torch.float32, CPU).items():
        arguments = own[0]
        with counting() as touched:
            OPERATIONS[name].fused(*arguments)
        cost = KERNEL_COSTS[name](*arguments)
        counted = [sum(touched[kind].values()) for kind in ("read", "written")]
        found[name] = [*counted, cost.read, cost.written]
    return found


def broken() -> float:
    """The difference of an operation whose kernel is wrong in one value."""
    norm = OPERATIONS["layer_norm"]

    def wrong(*arguments: Any) -> Any:
        normed, *rest = norm.fused(*arguments)
        normed[0, 0] += 1
        return (normed, *rest)

    return difference(type(norm)(norm.name, norm.plain, wrong, False), cases(torch.float32, CPU)["layer_norm"][0])


if __name__ == "__main__":
    json.dump(
        {
            "differences": differences(CPU, [getattr(torch, name) for name in sys.argv[1:]]),
            "traffic": traffic(),
            "broken": broken(),
        },
        sys.stdout,
    )
