"""A CPU's stand-in for torch.cuda.make_graphed_callables: stages traced once, replayed without Python into the same
memory, and refused where a capture would refuse them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from segformer_spark.bench.roofline.trace import tracing


class NoRandomNumbers(TorchDispatchMode):
    """Raises where random numbers are drawn: a replay would draw the same again, but for CUDA's own generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rates = [argument for argument in args if isinstance(argument, float)]
        draws_none = "scaled_dot_product" in str(func) and not any(rates)
        if torch.Tag.nondeterministic_seeded in func.tags and not draws_none:
            raise RuntimeError(f"{func} draws random numbers during a capture")
        return func(*args, **(kwargs or {}))


def record(stages: tuple[nn.Module, ...], examples: tuple[tuple[Tensor, ...], ...]) -> Sequence[Callable[..., Tensor]]:
    """What replays each stage.

    Raises:
        RuntimeError: what no capture can have: hooks, a wait of the host, random numbers.
    """
    return [_Recorded(stage, arguments) for stage, arguments in zip(stages, examples, strict=True)]


class _Recorded:
    def __init__(self, stage: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if stage._forward_hooks or stage._forward_pre_hooks or stage._backward_hooks:
            raise RuntimeError("a graphed callable may have no hooks")
        self._params = tuple(stage.parameters())
        for _ in range(2):  # the first makes what is made once
            with tracing() as trace, NoRandomNumbers():
                out = stage(*arguments)
                torch.autograd.grad(out, self._wanted(arguments), torch.zeros_like(out))
        if trace.host_syncs:
            raise RuntimeError(f"the host waits during a capture: {dict(trace.host_syncs)}")

        def both(grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            result = stage(*given)
            return (result, *torch.autograd.grad(result, self._wanted(given), grad))

        self._forward = make_fx(lambda *given: stage(*given))(*arguments)
        self._both = make_fx(both)(torch.zeros_like(out), *arguments)
        self._given = tuple(argument.detach().clone() for argument in arguments)
        self._out = torch.empty_like(out).detach()
        self._grads = [torch.empty_like(wanted) for wanted in self._wanted(arguments)]
        self._takes_grad = [argument.requires_grad for argument in (*arguments, *self._params)]

    def _wanted(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        return [tensor for tensor in (*arguments, *self._params) if tensor.requires_grad]

    def __call__(self, *arguments: Tensor) -> Tensor:
        result: Tensor = _Replay.apply(self, *arguments, *self._params)
        return result

    @torch.no_grad()
    def replay(self, arguments: Sequence[Tensor]) -> Tensor:
        for static, given in zip(self._given, arguments, strict=False):
            static.copy_(given)
        return self._out.copy_(self._forward(*self._given)).detach()

    @torch.no_grad()
    def replay_backward(self, grad: Tensor) -> list[Tensor | None]:
        _, *grads = self._both(grad, *self._given)
        for static, own in zip(self._grads, grads, strict=True):
            static.copy_(own)
        left = iter(self._grads)
        return [next(left).detach() if takes else None for takes in self._takes_grad]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *inputs: Tensor) -> Tensor:
        ctx.recorded = recorded
        return recorded.replay(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.recorded.replay_backward(grads[0])
