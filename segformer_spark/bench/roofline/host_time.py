"""What the host does in a step: the wall time of a real step on inputs so small that nothing else counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from segformer_spark.bench.roofline.steps import AUTOCAST, StepSpec
from segformer_spark.bench.workload import OURS
from segformer_spark.config.schema import LossConfig
from segformer_spark.config.variants import VARIANTS, Variant
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.kernels.registry import only_shapes
from segformer_spark.losses.build import build_loss
from segformer_spark.models.segformer import SegFormer, segformer_config

_SIDE, _CHANNELS = 32, 8
_ROUNDS, _WARM_UP = 15, 3


def host_times(spec: StepSpec) -> dict[str, list[float]]:
    """{implementation: seconds of every step}, in turn: the variant's blocks with 8 channels, one image of 32 pixels.

    On a CPU, in one thread. This package's kernels return at once what nobody has filled, as a launch does; Triton's
    own part of a launch is not in it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {OURS: _ours(spec), AUTOCAST: _transformers(spec)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        with only_shapes():
            for _ in range(_WARM_UP + _ROUNDS):
                for name, step in steps.items():
                    started = time.perf_counter()
                    step()
                    seconds[name].append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return {name: own[_WARM_UP:] for name, own in seconds.items()}


def host_ratio(seconds: dict[str, list[float]]) -> float:
    """The median of this package's time over transformers' of the same round."""
    pairs = zip(seconds[OURS], seconds[AUTOCAST], strict=True)
    return statistics.median(own / theirs for own, theirs in pairs)


def _network(spec: StepSpec) -> nn.Module:
    from transformers import SegformerForSemanticSegmentation

    small = Variant(VARIANTS[spec.variant].depths, (_CHANNELS,) * 4, _CHANNELS, (1,) * 4)
    model: nn.Module = SegformerForSemanticSegmentation(segformer_config(small, ["a", "b", "c"]))
    return model.train()


def _ours(spec: StepSpec) -> Callable[[], None]:
    model = SegFormer(_network(spec))
    model.train()
    loss = build_loss(LossConfig(), 3, IGNORE_INDEX)
    model.use_kernels(spec.kernels)
    loss.use_kernels(spec.kernels)
    images, labels = torch.zeros(1, 3, _SIDE, _SIDE), torch.zeros(1, _SIDE, _SIDE, dtype=torch.uint8)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.narrow is not None):
            outputs = model(images, with_auxiliary=True)
        return loss.of_outputs(outputs, labels)

    return _step(model, forward)


def _transformers(spec: StepSpec) -> Callable[[], None]:
    model = _network(spec)
    images, labels = torch.zeros(1, 3, _SIDE, _SIDE), torch.zeros(1, _SIDE, _SIDE, dtype=torch.uint8)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.narrow is not None):
            value: torch.Tensor = model(images, labels=labels.long()).loss
        return value

    return _step(model, forward)


def _step(model: nn.Module, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        forward().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step
