"""The estimated step of a configuration, of any model of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segformer_spark.bench.roofline.device_models import DeviceModel
from segformer_spark.bench.roofline.steps import autocast_of, second_trace, update
from segformer_spark.bench.roofline.trace import Operation
from segformer_spark.config.schema import Config
from segformer_spark.engine.optimizer import build_optimizer
from segformer_spark.training.measure import measured_parts


@dataclass(frozen=True)
class StepEstimate:
    """Parts of an optimizer step on one device.

    Attributes:
        passes, encoder: seconds of forward and backward pass of a micro-batch, and of its encoder's forward pass alone.
        update: seconds of the optimizer.
        peak_bytes: with one micro-batch.
    """

    passes: float
    encoder: float
    update: float
    peak_bytes: int

    def seconds(self, config: Config, accumulation_steps: int) -> float:
        """Of an optimizer step; exact accumulation runs the encoder once more for each of several micro-batches."""
        exact = config.training.accumulation == "exact" and accumulation_steps > 1
        return accumulation_steps * (self.passes + (self.encoder if exact else 0.0)) + self.update


def estimate_step(config: Config, num_classes: int, device: DeviceModel) -> StepEstimate:
    """What a micro-batch of a training would take; nothing is computed.

    Loading, validation, communication and the host are left out.
    """
    model, loss = measured_parts(config, [str(index) for index in range(num_classes)])
    model.train()
    model.use_kernels("gpu")
    loss.use_kernels("gpu")
    mode = FakeTensorMode()
    _make_fake(model, mode)
    _make_fake(loss, mode)
    with mode:
        optimizer = build_optimizer(model, config.training.optimizer, torch.device("cpu"))
        size = (config.training.batch_size, *config.data.input_size)
        images = torch.rand(size[0], 3, *size[1:]).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(size, dtype=torch.uint8)

        def step() -> None:
            with autocast_of(config.training.precision):
                outputs = model(images, with_auxiliary=True)
            update(loss.of_outputs(outputs, labels), optimizer)

        def encode() -> None:
            with torch.no_grad(), autocast_of(config.training.precision):
                model.encode(images)

        trace = second_trace(step, model, optimizer, images, labels)
        encoder = second_trace(encode, model, None, images)
    tf32 = config.training.precision == "tf32"

    def seconds(operations: Sequence[Operation]) -> float:
        return sum(device.seconds(one.cost, tf32=tf32) for one in operations)

    updates = [one for one in trace.operations if "_fused_" in one.name]
    updating = seconds(updates)
    return StepEstimate(seconds(trace.operations) - updating, seconds(encoder.operations), updating, trace.peak_bytes)


def _make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of parameters and buffers: some libraries cannot build a network of those."""
    made: dict[int, nn.Parameter] = {}
    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                one._parameters[name] = made[id(parameter)]
        for name, buffer in one._buffers.items():
            if buffer is not None:
                one._buffers[name] = mode.from_tensor(buffer)
