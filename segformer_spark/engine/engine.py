"""The training engine: DeepSpeed behind a few methods. The only package that imports deepspeed."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.data.transforms import normalize_images
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.average import WeightAverage
from segformer_spark.engine.clipping import DeviceClipping
from segformer_spark.engine.cuda_graphs import graph_encoder
from segformer_spark.engine.launched import FinishedStep, LaunchedStep, StepResult
from segformer_spark.engine.nonfinite import BufferSnapshot, origin
from segformer_spark.engine.optimizer import build_optimizer
from segformer_spark.engine.played_ranks import PlayedRanks
from segformer_spark.engine.state import EngineState
from segformer_spark.errors import ConfigError, TrainingDiverged, UserError
from segformer_spark.kernels.check import check_kernels
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.losses.build import WeightedSum
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger

_Backward = Callable[[Sequence[TrainBatch], int], tuple[Tensor, Tensor | None]]


class Engine:
    """Forward, backward, update and named state of a model under ZeRO 0, 1 or 2.

    Attributes:
        snapshots: copies of the training state.
        played: whose random numbers this process draws, where it does the work of several ranks.
    """

    def __init__(
        self, model: SegmentationModel, loss: WeightedSum, config: Config, plan: BatchPlan, group: Group
    ) -> None:
        """Hand the model to DeepSpeed. Collective.

        Raises:
            ConfigError: a precision that this device or stage cannot do, or a bad DeepSpeed file.
        """
        check_precision(config, group.device)
        # deepspeed makes this the current device: with one GPU bound to each task it is 0 on every rank.
        os.environ["LOCAL_RANK"] = str(group.launch.local_rank if group.device.index is None else group.device.index)
        deepspeed = load_deepspeed(group.device)
        model.to(group.device)
        if config.training.activation_checkpointing:
            model.checkpoint_activations()
        check_kernels(group.device, group.gather)
        model.use_kernels(config.hardware.kernels)
        loss.use_kernels(config.hardware.kernels)
        if config.hardware.compile != "off":
            model.compile_encoder(by_block=config.hardware.compile == "auto")
        if group.world_size > 1:
            model.reduce_batch_norm(group.sum)
        self.group, self.plan, self.seed = group, plan, config.experiment.seed
        self.precision = config.training.precision
        self.played: PlayedRanks | None = None
        self._arithmetic = select_arithmetic(config.hardware.kernels, group.device)
        self._compiles = config.hardware.compile != "off"
        self.loss: WeightedSum = loss.to(group.device)
        optimizer = build_optimizer(model, config.training.optimizer, group.device)
        settings = deepspeed_config(config, plan)
        deepspeed.init_distributed()  # adopts the process group that exists already
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        if config.hardware.cuda_graphs != "off":
            size = config.data.input_size
            pixels = torch.zeros(plan.micro_batch, 3, *size, dtype=torch.uint8, device=group.device)
            images = normalize_images(pixels, self._arithmetic)  # in memory as those of a step
            images = images.half() if self.precision == "fp16" else images
            graph_encoder(self.model, config, plan, group, images, self._autocast())
        # save_pretrained writes on rank 0 only.
        self.names = group.on_main(model.stored_names)
        self.joins_micro_batches = config.training.accumulation == "exact" and plan.accumulation_steps > 1
        decay = config.training.ema.decay
        self.average = WeightAverage(self.model, decay) if decay is not None else None
        from segformer_spark.engine.snapshot import Snapshotter

        self.snapshots = Snapshotter(self.engine, self.names, self.average, group)
        self._buffers = BufferSnapshot(self.model)
        stream: Any = torch.cuda.Stream
        self._copies = stream(group.device) if group.device.type == "cuda" else None
        # DeepSpeed's loss scaling clips by itself.
        clips = self.precision != "fp16"
        self._clipping = DeviceClipping(self.engine, group, config.training.gradient_clip) if clips else None

    @property
    def model(self) -> SegmentationModel:
        """The live model; its weights are whole on every rank."""
        module: SegmentationModel = self.engine.module
        return module

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; groups multiply it."""
        for parameter_group in self.engine.optimizer.param_groups:
            parameter_group["lr"] = lr * parameter_group.get("lr_multiplier", 1.0)

    def lrs(self) -> dict[str, float]:
        """The learning rate of every parameter group, by name."""
        return {group["name"]: group["lr"] for group in self.engine.optimizer.param_groups}

    def train_step(self, batches: Sequence[TrainBatch], step: int) -> StepResult:
        """`launch_step`, and what it gave.

        Raises:
            TrainingDiverged: the loss or, except under fp16, the gradient is not finite. Weights, moments, buffers and
                averages are those before the step.
        """
        return self.launch_step(batches, step).result()

    def launch_step(self, batches: Sequence[TrainBatch], step: int) -> LaunchedStep | FinishedStep:
        """One optimizer step from `accumulation_steps` micro-batches, queued on the device.

        With exact accumulation the loss, Dice and batch norm are those of all micro-batches together; else the loss is
        the mean of theirs. Dropout is a function of (seed, step, micro-batch, rank). A step that is not finite changes
        nothing, and nor does any after it; its result says so. Under fp16 the host waits for DeepSpeed's loss scaling.
        """
        assert len(batches) == self.plan.accumulation_steps
        self.engine.train()
        self._buffers.take()
        backward = self._backward_joined if self.joins_micro_batches else self._backward_each
        launch = self._launch if self._clipping is not None else self._run_scaled
        try:
            launched = launch(backward, batches, step)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is full at step {step + 1} with a micro-batch of {self.plan.micro_batch} images on "
                f"rank {self.group.rank}: {str(error).splitlines()[0]}",
                "Lower training.batch_size (training.global_batch_size keeps the recipe), set "
                "training.activation_checkpointing, or find the largest that fits: segformer-spark tune batch-size",
            ) from error
        if self._compiles:
            self._compiles = False
            logger.info("torch.compile: %d graph breaks in the encoder", graph_breaks())
        return launched

    def _launch(self, backward: _Backward, batches: Sequence[TrainBatch], step: int) -> LaunchedStep:
        assert self._clipping is not None
        loss, norm = backward(batches, step)
        assert norm is not None
        diverged = self._clipping.diverged
        self._buffers.restore_if(diverged)
        if self.average is not None:
            self.average.update(self.model, diverged)
        return LaunchedStep(loss, norm, diverged, partial(self._refuse, batches, step))

    def _run_scaled(self, backward: _Backward, batches: Sequence[TrainBatch], step: int) -> FinishedStep:
        """A step under fp16."""
        loss = float(backward(batches, step)[0])
        if not math.isfinite(loss):
            self._buffers.restore()
            self._refuse(batches, step, loss, math.nan)
        applied = bool(self.engine.was_step_applied())
        if applied and self.average is not None:
            self.average.update(self.model)
        norm = self.engine.get_global_grad_norm()
        return FinishedStep(StepResult(loss, float(norm) if applied and norm is not None else None, applied))

    def _refuse(self, batches: Sequence[TrainBatch], step: int, loss: float, norm: float) -> NoReturn:
        """Raise TrainingDiverged for a step that was not finite. Collective."""
        what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise TrainingDiverged(
            f"{what} at step {step + 1}; no update was applied. "
            + origin(self.model, batches, self.group, self._autocast()),
            "Resume from the last checkpoint with a lower training.optimizer.lr, a longer warm-up, or fp32.",
            shared=True,
            step=step + 1,
        )

    def _backward_each(self, batches: Sequence[TrainBatch], step: int) -> tuple[Tensor, Tensor | None]:
        """Forward, backward and update, one micro-batch after the other; returns mean loss and gradient norm."""
        total, norm = torch.zeros((), device=self.group.device), None
        for part, batch in enumerate(batches):
            self._seed(step, part)
            images, labels = self._on_device(batch)
            loss: Tensor = self.loss.of_outputs(self.engine(images, with_auxiliary=True), labels)
            total += loss.detach()
            norm = self._backward(loss, total / len(batches), last=part == len(batches) - 1)
        return total / len(batches), norm

    def _backward_joined(self, batches: Sequence[TrainBatch], step: int) -> tuple[Tensor, Tensor | None]:
        """The gradient of one batch of all micro-batches, with the encoder's memory of one (Gao et al. 2021).

        The encoder runs without gradients first; the head, far smaller, sees the features of all micro-batches and
        gives the loss and its gradients for head and features; then the encoder runs again for each micro-batch, and a
        scalar product with the features' gradients carries them on. DeepSpeed divides each by their number.
        """
        parts = [self._on_device(batch) for batch in batches]
        features = []
        with torch.no_grad():
            for part, (images, _) in enumerate(parts):
                self._seed(step, part)
                features.append(self.engine(images, only_features=True))
        joined = [torch.cat(level).requires_grad_() for level in zip(*features, strict=True)]
        labels = torch.cat([labels for _, labels in parts])
        del features
        self._seed(step, len(parts))
        with self._autocast():
            outputs = self.model.decode_all(joined, (labels.shape[-2], labels.shape[-1]))
        loss: Tensor = self.loss.of_outputs(outputs, labels)
        head = [parameter for parameter in self.model.head_parameters() if parameter.requires_grad]
        scale = self.loss_scale()
        gradients = [g.float() / scale for g in torch.autograd.grad(loss * scale, [*joined, *head])]
        of_features, of_head = gradients[: len(joined)], gradients[len(joined) :]
        norm = None
        for part, (images, _) in enumerate(parts):
            self._seed(step, part)
            maps = self.engine(images, only_features=True)
            rows = slice(part * len(images), (part + 1) * len(images))
            carried = _product(maps, [gradient[rows] for gradient in of_features]) * len(parts)
            norm = self._backward(carried + _product(head, of_head), loss.detach(), last=part == len(parts) - 1)
        return loss.detach(), norm

    def _backward(self, value: Tensor, loss: Tensor, *, last: bool) -> Tensor | None:
        """Backward pass from `value` and, after the `last` micro-batch, the update; returns the gradient norm before
        clipping.

        Args:
            loss: of the step, which is to be finite.
        """
        self.engine.backward(value)
        norm = self._clipping.prepare(loss) if last and self._clipping is not None else None
        self._update()
        return norm

    def _update(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            if self.precision != "fp16" or "loss scale already at minimum" not in str(error):
                raise
            raise TrainingDiverged(
                "the gradient overflows under fp16 at the lowest loss scale",
                "Use bf16 or fp32, or a lower training.optimizer.lr.",
                shared=True,
            ) from error

    def _on_device(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Normalised images and labels. A GPU copies them on a stream of their own, behind the step before: the host,
        which reads a step's numbers one step late, is here while that step still computes."""
        if self._copies is None:
            return self._copied(batch)
        with torch.cuda.stream(self._copies):
            images, labels = self._copied(batch)
        computing = torch.cuda.current_stream(self.group.device)
        computing.wait_stream(self._copies)
        for tensor in (images, labels):
            tensor.record_stream(computing)
        return images, labels

    def _copied(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        images = normalize_images(batch.images.to(self.group.device, non_blocking=True), self._arithmetic)
        return images, batch.masks.to(self.group.device, non_blocking=True)

    def _seed(self, step: int, part: int) -> None:
        if self.played is None:
            torch.manual_seed(_mix(self.seed, step, part, self.group.rank))
            return
        together = self.plan.accumulation_steps if part == self.plan.accumulation_steps else 1
        self.played.seed([_mix(self.seed, step, part, rank) for rank in range(self.played.num_ranks)], together)

    def _autocast(self) -> torch.autocast:
        """What DeepSpeed does around its own forward pass."""
        return torch.autocast(self.group.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def loss_scale(self) -> float:
        """What the loss is multiplied with before its backward pass: 1 except under fp16."""
        return float(self.engine.optimizer.loss_scaler.cur_scale) if self.engine.fp16_enabled() else 1.0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model for the duration of the block, if there is an average."""
        if self.average is None:
            yield
            return
        with self.average.in_place_of(self.model):
            yield

    @property
    def num_updates(self) -> int:
        """Optimizer steps that changed the weights; under fp16 an overflow drops some."""
        from segformer_spark.engine.transfer import applied_updates

        return applied_updates(self.engine)

    def export_state(self) -> EngineState | None:
        """Weights, moments and buffers by stored name, on the CPU of the first rank; None on the others. Collective."""
        return self.snapshots.assemble(self.snapshots.take(), self.group.control)

    def import_state(self, state: EngineState | None) -> None:
        """Continue from an exported state, which the first rank has. Collective."""
        from segformer_spark.engine.transfer import import_state, receive

        import_state(self.engine, state, self.names, self.group)
        stored = self.group.broadcast(None if state is None or state.average is None else state.optimizer_step)
        if self.average is not None and stored is not None:
            receive(self.average.values, None if state is None else state.average, self.names, self.group)
            self.average.num_updates = stored

    def weights(self) -> dict[str, Tensor]:
        """fp32 weights and buffers by stored name, averaged if asked for, on the first rank, for exporting; nothing on
        the others. Collective under fp16."""
        if self.average is None and self.engine.fp16_enabled():
            state = self.export_state()
            return {} if state is None else {**state.parameters, **state.buffers}
        if not self.group.is_main:
            return {}
        live = self.model.state_dict() if self.average is None else self.average.values
        return {self.names[name]: value.detach().cpu().clone() for name, value in live.items()}

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers."""
        self.engine.destroy()


def check_precision(config: Config, device: torch.device) -> None:
    """Refuse what cannot work (fp16 on CPUs or without ZeRO, bf16 on GPUs without it)."""
    precision = config.training.precision
    refuse_fp16_on_cpu(precision, device.type)
    if precision == "fp16" and config.deepspeed.zero_stage == 0:
        raise ConfigError("training.precision fp16 needs deepspeed.zero_stage 1 or 2; with stage 0 use bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("training.precision bf16: this GPU has no bf16 arithmetic; use fp32 or fp16")


def load_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device, and keep it quiet."""
    # deepspeed asks for the accelerator when it is imported.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _skip_shared_memory_op(deepspeed)
    _import_muon_uncompiled()
    return deepspeed


def _skip_shared_memory_op(deepspeed: Any) -> None:
    """Spare the compilation of an inference collective at start-up (about 30 s and a C++ compiler on the node)."""
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False


def _import_muon_uncompiled() -> None:
    """DeepSpeed imports its Muon optimizer for every ZeRO engine. Compiling its functions loads Inductor: a second per
    rank at start-up, for an optimizer that is not used here."""
    from deepspeed.runtime import compiler

    torch_compile, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = torch_compile


def graph_breaks() -> int:
    """Graph breaks that torch.compile met in this process."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def _product(values: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([(v.float() * g).sum() for v, g in zip(values, gradients, strict=True)]).sum()


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
