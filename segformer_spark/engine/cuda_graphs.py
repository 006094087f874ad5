"""`hardware.cuda_graphs`: when the encoder's stages are recorded, and what all ranks agree on about it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.kernels.select import select_arithmetic
from segformer_spark.models.graphed_stages import Capture
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.run.console import logger


def capture_for(device: torch.device) -> Capture | None:
    """What records stages on a device, None where nothing does."""
    return _capture_on_gpu if device.type == "cuda" else None


def _capture_on_gpu(stages: tuple[nn.Module, ...], examples: tuple[tuple[Tensor, ...], ...]) -> Sequence[Any]:
    # Warm-up passes draw random numbers where attention has dropout.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        graphed: Any = torch.cuda.make_graphed_callables(stages, examples)
    return tuple(graphed)


def obstacle(config: Config, plan: BatchPlan, device: torch.device) -> str | None:
    """Why this training's stages cannot be CUDA graphs; None if they can."""
    if capture_for(device) is None:
        return f"there are none on a {device.type} device"
    if select_arithmetic(config.hardware.kernels, device) == "cpu":
        return "hardware.kernels is cpu, and graphs are for plain and gpu"
    if plan.accumulation_steps > 1:
        # A replay writes into the gradients that the micro-batch before left (pytorch/pytorch#181723).
        return f"training.accumulation_steps is {plan.accumulation_steps}: a replay overwrites the gradients before it"
    if config.training.activation_checkpointing:
        return "training.activation_checkpointing computes again what a graph would keep"
    if config.model.freeze_backbone:
        return "model.freeze_backbone: the encoder has no backward pass"
    return None


def graph_encoder(
    model: SegmentationModel,
    config: Config,
    plan: BatchPlan,
    group: Group,
    images: Tensor,
    autocast: AbstractContextManager[object],
) -> None:
    """Record the encoder of a model whose parameters will not move any more, or say why not. Collective.

    No collective may be under way on any rank: a capture waits for none, and NCCL would (pytorch/pytorch#196133).

    Args:
        images: of the type and shape of a micro-batch.
        autocast: of the forward pass.
    """
    why = obstacle(config, plan, group.device)
    if why is None:
        capture = capture_for(group.device)
        assert capture is not None
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        group.barrier()
        try:
            with autocast:
                model.graph_encoder(images, capture)
        except RuntimeError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            why = f"rank {group.rank} could not record them: {lines[0]}"
    reason = next((theirs for theirs in group.gather(why) if theirs is not None), None)
    if reason is not None:
        model.forget_graphs()
        logger.info("hardware.cuda_graphs: no CUDA graphs in this run: %s", reason)
        return
    logger.info("hardware.cuda_graphs: the encoder's stages are CUDA graphs for images of %s", tuple(images.shape))
