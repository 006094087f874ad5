"""The steps that are compared, on fake tensors: forward, loss, backward and AdamW, after a step that does not count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from segformer_spark.bench.roofline.compiled import counting_compiler
from segformer_spark.bench.roofline.cuda_autocast import cuda_rules_on_cpu
from segformer_spark.bench.roofline.trace import Trace, tracing
from segformer_spark.bench.workload import OURS, names
from segformer_spark.config.image_size import Size, height_width
from segformer_spark.config.schema import LossConfig
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.kernels.class_ids import class_ids
from segformer_spark.kernels.select import Setting, select_arithmetic
from segformer_spark.losses.build import build_loss
from segformer_spark.models.segformer import SegFormer, segformer_config

AUTOCAST = "transformers, autocast"
NARROW = "transformers, bf16 parameters"
COMPILED = f"{OURS}, compile auto"


@dataclass(frozen=True)
class StepSpec:
    """A training step.

    Attributes:
        precision: fp32, tf32, bf16 or fp16.
        kernels: this package's arithmetic, as hardware.kernels names it.
        compile: auto has one more implementation, as hardware.compile makes it of this package's.
    """

    variant: str
    batch: int
    image_size: int | Size
    classes: int
    precision: str
    kernels: Setting
    compile: Literal["off", "auto"] = "off"

    @property
    def input_size(self) -> Size:
        """`image_size` as (height, width)."""
        return height_width(self.image_size)

    @property
    def narrow(self) -> torch.dtype | None:
        """The type that layers compute in under autocast; None without autocast."""
        return narrow_type(self.precision)

    @property
    def library(self) -> str:
        """The name of transformers with fp32 parameters."""
        return "transformers" if self.narrow is None else AUTOCAST


def trace_steps(spec: StepSpec) -> dict[str, Trace]:
    """{implementation: what its step does}."""
    steps: dict[str, Callable[[StepSpec], Trace]] = {OURS: _ours, spec.library: _transformers}
    if spec.narrow is not None:
        steps[NARROW] = _transformers_in_narrow_parameters
    if spec.compile == "auto":
        steps[COMPILED] = _ours_compiled
    return {name: step(spec) for name, step in steps.items()}


def trace_inference(spec: StepSpec) -> dict[str, Trace]:
    """{implementation: what it does from normalised images to class ids at twice their size}."""
    size = (2 * spec.input_size[0], 2 * spec.input_size[1])
    traces = {OURS: _infer(spec, size), spec.library: _infer_with_transformers(spec, size, None)}
    if spec.narrow is not None:
        traces[NARROW] = _infer_with_transformers(spec, size, spec.narrow)
    return traces


@contextmanager
def _fake(spec: StepSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of a batch, on fake tensors."""
    with FakeTensorMode():
        images = torch.rand(spec.batch, 3, *spec.input_size).contiguous(memory_format=torch.channels_last)
        yield images, torch.zeros(spec.batch, *spec.input_size, dtype=torch.uint8)


def narrow_type(precision: str) -> torch.dtype | None:
    """The type that layers compute in under autocast; None without autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def autocast_of(precision: str) -> AbstractContextManager[object]:
    """Autocast by CUDA's rules, or nothing."""
    narrow = narrow_type(precision)
    return nullcontext() if narrow is None else cuda_rules_on_cpu(narrow)


def _library_model(spec: StepSpec) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    model: nn.Module = SegformerForSemanticSegmentation(segformer_config(spec.variant, names(spec.classes)))
    return model.train()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters in `dtype`: a module of fake tensors cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _ours(spec: StepSpec) -> Trace:
    with _fake(spec) as (images, labels):
        model, optimizer, step = _our_step(spec, images, labels)
        return second_trace(step, model, optimizer, images, labels)


def _ours_compiled(spec: StepSpec) -> Trace:
    """The encoder block by block as Inductor plans it, the rest as it is dispatched."""
    with counting_compiler() as counts, _fake(spec) as (images, labels):
        model, optimizer, step = _our_step(spec, images, labels)
        model.compile_encoder(by_block=True)
        with tracing(host_calls=False):
            step()
        with tracing(_living(model, optimizer, images, labels), host_calls=False) as trace:
            counts.trace = trace
            step()
        return trace


def _our_step(
    spec: StepSpec, images: Tensor, labels: Tensor
) -> tuple[SegFormer, torch.optim.Optimizer, Callable[[], None]]:
    model = SegFormer(_library_model(spec))
    model.train()
    loss = build_loss(LossConfig(), spec.classes, IGNORE_INDEX)
    model.use_kernels(spec.kernels)
    loss.use_kernels(spec.kernels)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with autocast_of(spec.precision):
            outputs = model(images, with_auxiliary=True)
        update(loss.of_outputs(outputs, labels), optimizer)

    return model, optimizer, step


def _transformers(spec: StepSpec) -> Trace:
    with _fake(spec) as (images, labels):
        model = _library_model(spec)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            with autocast_of(spec.precision):
                loss = model(images, labels=labels.long()).loss
            update(loss, optimizer)

        return second_trace(step, model, optimizer, images, labels)


def _transformers_in_narrow_parameters(spec: StepSpec) -> Trace:
    """Parameters in bf16 with an fp32 copy that the optimizer updates, as under DeepSpeed's bf16 section."""
    with _fake(spec) as (images, labels):
        with _default_dtype(spec.narrow or torch.float32):
            model = _library_model(spec)
        parameters = list(model.parameters())
        copies = [parameter.detach().float().requires_grad_() for parameter in parameters]
        optimizer = torch.optim.AdamW(copies, fused=True)

        @torch.no_grad()
        def update_copies() -> None:
            wide = [torch.empty_like(copy) for copy in copies]
            torch._foreach_copy_(wide, [parameter.grad for parameter in parameters if parameter.grad is not None])
            for copy, grad in zip(copies, wide, strict=True):
                copy.grad = grad
            optimizer.step()
            torch._foreach_copy_([*parameters], copies)
            model.zero_grad()
            optimizer.zero_grad()

        def step() -> None:
            model(images.to(spec.narrow), labels=labels.long()).loss.backward()
            update_copies()

        return second_trace(step, model, optimizer, images, labels)


def _infer(spec: StepSpec, size: tuple[int, int]) -> Trace:
    with _fake(spec) as (images, _), torch.no_grad():
        model = SegFormer(_library_model(spec))
        model.eval()
        model.use_kernels(spec.kernels)
        arithmetic = select_arithmetic(spec.kernels, images.device)

        def run() -> None:
            with autocast_of(spec.precision):
                logits = model(images)
            class_ids(logits, size, arithmetic)

        return second_trace(run, model, None, images)


def _infer_with_transformers(spec: StepSpec, size: tuple[int, int], narrow: torch.dtype | None) -> Trace:
    with _fake(spec) as (images, _), torch.no_grad(), _default_dtype(narrow or torch.float32):
        model = _library_model(spec).eval()

        def run() -> None:
            with autocast_of(spec.precision) if narrow is None else nullcontext():
                logits = model(images if narrow is None else images.to(narrow)).logits
            functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)

        return second_trace(run, model, None, images)


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Backward pass and optimizer."""
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def second_trace(
    step: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer | None, *inputs: Tensor
) -> Trace:
    """The trace of a step when constants and the optimizer's state exist."""
    with tracing():
        step()
    with tracing(_living(model, optimizer, *inputs)) as trace:
        step()
    return trace


def _living(model: nn.Module, optimizer: torch.optim.Optimizer | None, *inputs: Tensor) -> list[Tensor]:
    """What holds memory between two steps."""
    states = [] if optimizer is None else list(optimizer.state.values())
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    groups = [] if optimizer is None else optimizer.param_groups
    own = [parameter for group in groups for parameter in group["params"]]
    return [*model.parameters(), *model.buffers(), *own, *moments, *inputs]
