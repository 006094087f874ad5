"""What an optimizer step consists of: gradient norms per layer, parts of the loss, where values stop being finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segformer_spark.engine.engine import Engine
from segformer_spark.losses.base import SumLoss


@dataclass
class StepEvidence:
    """Collected while a step runs; complete when `Collector.watching` ends.

    Attributes:
        grad_norms: {layer: norm of the gradient of its parameters, over all ranks}, in the order of the model.
        loss_parts: {part of the loss: its mean over the micro-batches, before its weight}.
        first_not_finite: the first module of the forward pass whose output is not finite on this rank, with its shape;
            None when all are.
        logits: of this rank's images, in their order, on the model's own grid.
    """

    grad_norms: dict[str, float] = field(default_factory=dict)
    loss_parts: dict[str, float] = field(default_factory=dict)
    first_not_finite: str | None = None
    logits: list[Tensor] = field(default_factory=list)

    @property
    def first_layer_not_finite(self) -> str | None:
        """The layer nearest the loss whose gradient is not finite: there it arose in the backward pass."""
        layers = [name for name, norm in self.grad_norms.items() if not norm < float("inf")]
        return layers[-1] if layers else None


class Collector:
    """Hooks into an engine for one step."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.evidence = engine, StepEvidence()
        self._gradients: dict[str, Tensor] = {}
        self._parts: dict[str, list[float]] = {}

    @contextmanager
    def watching(self) -> Iterator[StepEvidence]:
        """Collect for the duration of the block. Collective at its end, also where the step fails."""
        model = self.engine.model
        handles: list[Any] = []
        nodes: list[Any] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # Its node: torch.autograd.grad, which joins micro-batches, must not count.
                node: Any = parameter.expand_as(parameter).grad_fn
                node = node.next_functions[0][0]
                nodes.append(node)
                handles.append(node.register_prehook(self._gradient_hook(name)))
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(self._output_hook(name or type(module).__name__)))
        loss = self.engine.loss
        loss.__dict__["of_outputs"] = self._keep_logits(loss.of_outputs)
        for name, part in loss.parts.items():
            if isinstance(part, SumLoss):  # whose sums may come from all parts together
                part.__dict__["value"] = self._keep_value(name, part.value)
            else:
                handles.append(part.register_forward_hook(partial(self._keep_output, name)))
        try:
            yield self.evidence
        finally:
            del nodes
            for handle in handles:
                handle.remove()
            loss.__dict__.pop("of_outputs")
            for part in loss.parts.values():
                part.__dict__.pop("value", None)
            self.evidence.loss_parts = {name: sum(values) / len(values) for name, values in self._parts.items()}
            self.evidence.grad_norms = self._norms()

    def _gradient_hook(self, name: str) -> Any:
        def add(gradients: tuple[Tensor, ...]) -> None:
            own = gradients[0].detach().float()
            self._gradients[name] = own.clone() if name not in self._gradients else self._gradients[name] + own

        return add

    def _output_hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple | list) else [output]:
                known = self.evidence.first_not_finite is not None
                if not known and isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
                    self.evidence.first_not_finite = f"{name} {tuple(tensor.shape)}"

        return look

    def _keep_logits(self, of_outputs: Any) -> Any:
        def keep(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
            self.evidence.logits += outputs[0].detach().float().cpu().unbind()
            result: Tensor = of_outputs(outputs, labels)
            return result

        return keep

    def _keep_value(self, name: str, value: Any) -> Any:
        def keep(sums: Tensor) -> Tensor:
            result: Tensor = value(sums)
            self._parts.setdefault(name, []).append(float(result.detach()))
            return result

        return keep

    def _keep_output(self, name: str, part: nn.Module, inputs: Any, output: Tensor) -> None:
        self._parts.setdefault(name, []).append(float(output.detach()))

    def _norms(self) -> dict[str, float]:
        """DeepSpeed averages gradients over ranks; a layer is the module that has the parameters."""
        group, scale = self.engine.group, self.engine.group.world_size * self.engine.loss_scale()
        squares: dict[str, float] = {}
        for name, parameter in self.engine.model.named_parameters():
            if not parameter.requires_grad:
                continue
            own = self._gradients.get(name)
            total = group.sum(torch.zeros_like(parameter, dtype=torch.float32) if own is None else own) / scale
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0.0) + float(total.double().square().sum())
        return {layer: square**0.5 for layer, square in squares.items()}
