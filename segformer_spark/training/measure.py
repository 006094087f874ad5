"""What one forward and backward pass costs: time, and the memory that it keeps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.deepspeed import reduce_bucket_size
from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.engine.optimizer import num_state_tensors
from segformer_spark.evaluation.predict import autocast
from segformer_spark.losses.build import WeightedSum, build_loss
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.pretrained import build_model
from segformer_spark.run.allocator import release_freed_memory
from segformer_spark.run.system import forget_highest_memory, resident_bytes

_BYTES = 4
_REPEATS = 3
NUM_PASSES = 2 + _REPEATS


def measured_parts(config: Config, class_names: Sequence[str]) -> tuple[SegmentationModel, WeightedSum]:
    """The configured model with random weights, and its loss with equal class weights: as dear as the real ones."""
    random = config.model.model_copy(update={"pretrained": "none"})
    model = build_model(random, class_names, 0, config.data.input_size)
    if config.training.activation_checkpointing:
        model.checkpoint_activations()
    equal = config.training.loss.model_copy(update={"class_weights": None})
    return model, build_loss(equal, len(class_names), IGNORE_INDEX)


@dataclass(frozen=True)
class PassCost:
    """Cost of one forward and backward pass.

    Attributes:
        num_images: images in it.
        seconds, encoder_seconds: median of the whole pass, and of the encoder's forward pass alone.
        encoder_bytes, head_bytes: tensors kept for the backward pass by the encoder, and by head and loss, without
            parameters.
        workspace_bytes: what the pass took at its highest beyond kept tensors and gradients, holes between freed blocks
            included; 0 where nobody can tell.
        library_bytes: what the first pass left behind: code and caches of the libraries.
    """

    num_images: int
    seconds: float
    encoder_seconds: float
    encoder_bytes: int
    head_bytes: int
    workspace_bytes: int
    library_bytes: int


def measure_pass(
    model: SegmentationModel,
    loss: WeightedSum,
    num_images: int,
    image_size: Size,
    device: torch.device,
    precision: str = "fp32",
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> PassCost:
    """Run passes on random images of this size, after one that is not counted. Leaves no gradients behind.

    torch.compile is not part of it. `advance` is called with 1 after each of NUM_PASSES passes.
    """
    model.to(device).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, *image_size, generator=generator).to(device)
    labels = torch.randint(0, model.num_classes, (num_images, *image_size), generator=generator).to(device)

    def encode() -> Sequence[Tensor]:
        with autocast(device, precision):
            return model.encode(images)

    def finish(features: Sequence[Tensor]) -> Tensor:
        with autocast(device, precision):
            outputs = model.decode_all(features, image_size)
        value: Tensor = loss.of_outputs(outputs, labels)
        return value

    def whole_pass() -> None:
        finish(encode()).backward()  # type: ignore[no-untyped-call]

    memory = _Memory(device)
    whole_pass()
    advance(1)
    model.zero_grad(set_to_none=True)
    libraries = memory.left()
    memory = _Memory(device)
    in_encoder, in_head = _KeptTensors(model), _KeptTensors(model)
    with in_encoder:
        features = encode()
    with in_head:
        value = finish(features)
    in_forward = memory.taken()
    value.backward()  # type: ignore[no-untyped-call]
    del features, value
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    highest = max(in_forward, memory.taken() - gradients)
    workspace = max(0, highest - in_encoder.num_bytes - in_head.num_bytes)
    advance(1)
    times = []
    for _ in range(_REPEATS):
        times.append(_timed(whole_pass, device))
        advance(1)
    seconds = statistics.median(times)
    with torch.no_grad():
        encoder = statistics.median(_timed(encode, device) for _ in range(_REPEATS))
    model.zero_grad(set_to_none=True)
    return PassCost(num_images, seconds, encoder, in_encoder.num_bytes, in_head.num_bytes, workspace, libraries)


class _Memory:
    """Memory that is taken from now on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            release_freed_memory()
            self._before = resident_bytes() or 0
            forget_highest_memory()

    def left(self) -> int:
        """What is still taken when all that is free has been given back."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device)) - self._before
        release_freed_memory()
        return max(0, (resident_bytes() or 0) - self._before)

    def taken(self) -> int:
        """At its highest so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        return (resident_bytes(highest=True) or 0) - self._before


class _KeptTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the storages that autograd keeps, each once."""

    def __init__(self, model: SegmentationModel) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._seen: set[int] = set()
        self.num_bytes = 0
        self._blocks = model.recomputed_blocks()
        self._handles: list[Any] = []
        super().__init__(self._count, lambda tensor: tensor)

    def __enter__(self) -> None:
        # What is recomputed keeps its inputs, which no hook of autograd sees.
        self._handles = [block.register_forward_pre_hook(self._count_inputs) for block in self._blocks]
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _count_inputs(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                self._count(value)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters | self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor


def _timed(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device during a step, by what they are for.

    `joined_head`: under exact accumulation the head holds all micro-batches at once; this is what comes on top of one.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    joined_head: int
    workspace: int
    libraries: int
    bucket: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(asdict(self).values())


def estimate_memory(model: SegmentationModel, config: Config, plan: BatchPlan, cost: PassCost) -> MemoryEstimate:
    """Memory of a step under ZeRO (Rajbhandari et al. 2020, section 5), with activations as measured.

    fp32 parameters; gradients whole, or divided by the ranks under stage 2; the optimizer's state and, under ZeRO, a
    second fp32 copy of the weights, divided by the ranks under stages 1 and 2, and a buffer for reducing gradients.
    Workspace, as measured, grows with the images. What importing the libraries and the CUDA context take comes on top.
    """
    weights = sum(p.numel() for p in model.parameters()) * _BYTES
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * _BYTES
    stage, world = config.deepspeed.zero_stage, plan.world_size
    copies = num_state_tensors(config.training.optimizer) + (0 if stage == 0 else 1)
    half = config.training.precision == "fp16"
    others = plan.accumulation_steps - 1 if config.training.accumulation == "exact" else 0
    return MemoryEstimate(
        parameters=weights // 2 if half else weights,
        gradients=(trained // 2 if half else trained) // (world if stage == 2 else 1),
        optimizer=copies * trained // (world if stage else 1),
        average=weights if config.training.ema.decay is not None else 0,
        activations=(cost.encoder_bytes + cost.head_bytes) * plan.micro_batch // cost.num_images,
        joined_head=cost.head_bytes * plan.micro_batch * others // cost.num_images,
        workspace=cost.workspace_bytes * plan.micro_batch // cost.num_images,
        libraries=cost.library_bytes,
        bucket=(2 if half else _BYTES) * reduce_bucket_size(config) if stage else 0,
    )


def step_seconds(config: Config, plan: BatchPlan, cost: PassCost) -> float:
    """Time of one optimizer step on one device from the measured pass; communication and loading come on top."""
    per_pass = cost.seconds
    if config.training.accumulation == "exact" and plan.accumulation_steps > 1:
        per_pass += cost.encoder_seconds
    return per_pass * plan.micro_batch / cost.num_images * plan.accumulation_steps
