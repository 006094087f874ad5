"""What torch.compile makes of a step: kernels and bytes as Inductor itself counts them (its `inductor_metrics` log).

Inductor plans for the CPU, whose fusions are much like those for GPUs; no kernel is built, so that no compiler is
needed. The graphs run as they were traced, on fake tensors.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_leaves, tree_map_only

from segformer_spark.bench.roofline.costs import operation_cost
from segformer_spark.bench.roofline.trace import Operation, Trace, hidden_from
from segformer_spark.kernels.cost import Cost

_METRICS_LOG = "torch._inductor.compile_fx.__inductor_metrics"


class InductorCounts:
    """Adds what a compiled graph does to a trace, at every call; `trace` is None as long as nothing is counted.

    Attributes:
        graphs: how many were compiled.
    """

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.graphs = 0

    def compiler(self, *, backward: bool) -> Callable[..., Any]:
        """A compiler of graphs for torch.compile."""

        def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            from functorch.compile import make_boxed_func

            operations = planned(graph, inputs, backward=backward)
            self.graphs += 1

            def run(*given: Any) -> Any:
                if self.trace is None:
                    return graph.forward(*given)
                with hidden_from(self.trace):
                    results = graph.forward(*given)
                self.trace.operations += operations
                self.trace.hold(tree_leaves(results))
                return results

            boxed: Callable[..., Any] = make_boxed_func(run)
            return boxed

        return compile_graph


def planned(graph: torch.fx.GraphModule, inputs: Sequence[Any], *, backward: bool) -> list[Operation]:
    """The kernels that Inductor plans for a graph, in order."""
    from torch._inductor import config, ir, metrics
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.compile_fx import compile_fx_inner

    def not_built(*_: Any, **__: Any) -> Callable[..., None]:
        return lambda *_: None

    metrics.reset()
    log = logging.getLogger(_METRICS_LOG)
    level, log.propagate = log.level, False
    log.setLevel(logging.INFO)
    try:
        with (
            config.patch(fallback_random=True, force_disable_caches=True),
            mock.patch.object(AsyncCompile, "cpp_pybinding", not_built),
        ):
            compile_fx_inner(copy.deepcopy(graph), inputs, is_backward=backward)
        return [
            _operation(node, 4 * values)
            for node, values in metrics.nodes_num_elem
            if not isinstance(node.node, ir.MultiOutput)  # one result of a kernel with several
        ]
    finally:
        log.setLevel(level)


def _operation(node: Any, num_bytes: int) -> Operation:
    """A node of Inductor's plan. Bytes of what it fuses are its own number; a call of a library costs what it costs
    without compilation, since Inductor leaves out the results of those with several."""
    if not node.is_extern():
        name = "compiled: with sums" if node.is_reduction() else "compiled: pointwise"
        return Operation(name, Cost(read=float(num_bytes)))
    origin = _call_of(node.node)
    if origin is None:
        return Operation(f"compiled: {type(node.node).__name__}", Cost(read=float(num_bytes)))
    args, kwargs = tree_map_only(torch.fx.Node, lambda given: given.meta["val"], (origin.args, origin.kwargs))
    cost = operation_cost(origin.target, args, kwargs, origin.meta["val"])
    return Operation(f"{origin.target.namespace}.{origin.target._opname}", cost)


def _call_of(kernel: Any) -> Any:
    """The call in the graph that a kernel of a library was made of; None for one that Inductor adds."""
    made_of = [kernel.get_origin_node(), *kernel.get_origins()]
    calls = [call for call in made_of if call is not None and isinstance(call.target, torch._ops.OpOverload)]
    own = getattr(getattr(kernel, "op_overload", None), "overloadpacket", None)
    return next((call for call in calls if own is None or call.target.overloadpacket is own), None)


@contextmanager
def counting_compiler() -> Iterator[InductorCounts]:
    """torch.compile counts in this block, instead of building kernels."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    counts = InductorCounts()
    backend = aot_autograd(
        fw_compiler=counts.compiler(backward=False),
        bw_compiler=counts.compiler(backward=True),
        decompositions=select_decomp_table(),
        partition_fn=min_cut_rematerialization_partition,
    )
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=backend)):
        yield counts
