"""The training engine: DeepSpeed behind four verbs. The only package that imports deepspeed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.data.transforms import normalize_images
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.optimizer import build_optimizer
from segformer_spark.engine.state import EngineState
from segformer_spark.errors import ConfigError, TrainingDiverged
from segformer_spark.models.segformer import SegFormer, portable_names, resize_logits


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: global loss, gradient norm before clipping (None when skipped), whether it was applied."""

    loss: float
    grad_norm: float | None
    applied: bool


class Engine:
    """Forward, backward, update and named state of a model under ZeRO 0, 1 or 2."""

    def __init__(self, model: SegFormer, loss: nn.Module, config: Config, plan: BatchPlan, group: Group) -> None:
        """Hand the model to DeepSpeed. Collective.

        Raises:
            ConfigError: a precision that this device or stage cannot do, or a bad DeepSpeed file.
        """
        check_precision(config, group.device)
        # deepspeed asks for the accelerator when it is imported.
        os.environ.setdefault("DS_ACCELERATOR", group.device.type)
        # deepspeed makes this the current device: with one GPU bound to each task it is 0 on every rank.
        os.environ["LOCAL_RANK"] = str(group.launch.local_rank if group.device.index is None else group.device.index)
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        _skip_shared_memory_op(deepspeed)
        model.to(group.device)
        if group.world_size > 1:
            model.reduce_batch_norm(group.sum)
        self.group, self.plan, self.seed = group, plan, config.experiment.seed
        self.loss = loss.to(group.device)
        optimizer = build_optimizer(model, config.training.optimizer, group.device)
        settings = deepspeed_config(config, plan)
        deepspeed.init_distributed()  # adopts the process group that exists already
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        # save_pretrained writes on rank 0 only.
        self.names = group.main_only(lambda: portable_names(model))

    @property
    def model(self) -> SegFormer:
        """The live model; its weights are whole on every rank."""
        module: SegFormer = self.engine.module
        return module

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; groups multiply it."""
        for parameter_group in self.engine.optimizer.param_groups:
            parameter_group["lr"] = lr * parameter_group.get("lr_multiplier", 1.0)

    def train_step(self, batches: Sequence[TrainBatch], step: int) -> StepResult:
        """One optimizer step from `accumulation_steps` micro-batches.

        The loss is the mean over micro-batches of the loss over all ranks. Dropout is a function of
        (seed, step, micro-batch, rank).

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; a loss is refused before the update.
        """
        assert len(batches) == self.plan.accumulation_steps
        self.engine.train()
        total = torch.zeros((), device=self.group.device)
        for part, batch in enumerate(batches):
            torch.manual_seed(_mix(self.seed, step, part, self.group.rank))
            images = normalize_images(batch.images.to(self.group.device, non_blocking=True))
            labels = batch.masks.to(self.group.device, non_blocking=True)
            logits = self.engine(images)
            loss: Tensor = self.loss(resize_logits(logits, (labels.shape[-2], labels.shape[-1])), labels)
            value = loss.item()
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingDiverged(
                    f"the loss is {value} at step {step + 1}; the weights were not updated. "
                    "Lower training.optimizer.lr, lengthen the warm-up or use fp32; resume from the last checkpoint."
                )
            total += loss.detach()
            self.engine.backward(loss)
            own_norm = self._norm_without_zero(last=part == len(batches) - 1)
            self.engine.step()
        applied = bool(self.engine.was_step_applied())
        norm = own_norm if own_norm is not None else self._zero_norm()
        if applied and norm is not None and not torch.isfinite(torch.tensor(norm)):
            raise TrainingDiverged(
                f"the gradient norm is {norm} at step {step + 1} and the update was applied: the weights are lost. "
                "Resume from the last checkpoint with a lower training.optimizer.lr or fp32."
            )
        return StepResult(float(total) / len(batches), norm if applied else None, applied)

    def export_state(self) -> EngineState:
        """Weights, moments and buffers by stored name, on the CPU of every rank. Collective."""
        from segformer_spark.engine.transfer import export_state

        return export_state(self.engine, self.names)

    def import_state(self, state: EngineState) -> None:
        """Continue from an exported state. Collective."""
        from segformer_spark.engine.transfer import import_state

        import_state(self.engine, state, self.names)

    def weights(self) -> dict[str, Tensor]:
        """fp32 weights and buffers by stored name, for exporting. Collective under fp16."""
        if self.engine.fp16_enabled():
            state = self.export_state()
            return {**state.parameters, **state.buffers}
        return {self.names[name]: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def _norm_without_zero(self, *, last: bool) -> float | None:
        """DeepSpeed reports no norm under stage 0: the averaged gradients stand in the parameters until the update."""
        if not last or self.engine.zero_optimization():
            return None
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _zero_norm(self) -> float | None:
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)


def check_precision(config: Config, device: torch.device) -> None:
    """Refuse what cannot work (TRAPS: fp16 on CPU, fp16 without ZeRO, bf16 on old GPUs)."""
    precision = config.training.precision
    refuse_fp16_on_cpu(precision, device.type)
    if precision == "fp16" and config.deepspeed.zero_stage == 0:
        raise ConfigError("training.precision fp16 needs deepspeed.zero_stage 1 or 2; with stage 0 use bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("training.precision bf16: this GPU has no bf16 arithmetic; use fp32 or fp16")


def _skip_shared_memory_op(deepspeed: Any) -> None:
    """Spare the compilation of an inference collective at start-up (about 30 s and a C++ compiler on the node)."""
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
