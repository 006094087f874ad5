"""`train --dry-run`: what would run, what memory and time it would take, without touching anything."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from segformer_spark.config.batch import BatchPlan, plan_batches
from segformer_spark.config.deepspeed import deepspeed_config, deepspeed_file
from segformer_spark.config.fields import flatten
from segformer_spark.config.image_size import size_text
from segformer_spark.config.load import ResolvedConfig, run_path
from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.losses.build import build_loss
from segformer_spark.run.console import duration
from segformer_spark.training.measure import estimate_memory, measure_pass, measured_parts, step_seconds
from segformer_spark.training.plan import (
    check_model,
    lr_warning,
    open_checked,
    plan_schedule,
    resolve_loss,
    single_image_note,
)

_MIB = 2**20


def describe(resolved: ResolvedConfig, world_size: int, *, device: torch.device | None) -> Iterator[str]:
    """Lines: every value with its source, the batch arithmetic, the steps, memory and time.

    Args:
        device: where one micro-batch is measured; None measures nothing.

    Raises:
        UserError: the configuration or the data set could not be used for training either.
    """
    config = resolved.config
    yield from _values(resolved)
    refuse_fp16_on_cpu(config.training.precision, config.hardware.device)
    plan = plan_batches(config.training, world_size)
    deepspeed_config(config, plan)
    yield f"batch: {plan}"
    yield f"deepspeed: {deepspeed_file(config).name}"
    train_set, val_set = open_checked(config)
    per_epoch = plan.steps_per_epoch(len(train_set))
    schedule = plan_schedule(config, plan, per_epoch)
    total = schedule.total_steps
    yield f"images: {len(train_set)} {config.data.train_split}, {len(val_set)} {config.data.val_split}"
    left_out = len(train_set) - per_epoch * plan.global_batch
    yield f"steps per epoch: {per_epoch} ({left_out} images left out of each epoch)"
    yield f"steps in all: {total}, of which {schedule.warmup_steps} warm-up"
    yield f"peak learning rate: {schedule.peak:g} (lr_scaling {config.training.optimizer.lr_scaling})"
    loss = resolve_loss(config, train_set)
    build_loss(loss, len(train_set.classes), IGNORE_INDEX)
    weights = loss.class_weights
    if weights is not None:
        shown = ", ".join(f"{n} {w:.3g}" for n, w in zip(train_set.classes.names, weights, strict=True))
        yield f"class weights: {shown}"
    warning = lr_warning(config, plan)
    if warning is not None:
        yield f"warning: {warning}"
    if device is not None:
        yield from _costs(config, plan, train_set, total, device)


def _values(resolved: ResolvedConfig) -> Iterator[str]:
    config = resolved.config
    yield f"# run directory: {run_path(config)}"
    section = None
    for dotted, value in flatten(config.model_dump()).items():
        name, _, leaf = dotted.rpartition(".")
        if name != section:
            section = name
            yield f"{name}:"
        source = resolved.provenance[dotted]
        shown = "null" if value is None else list(value) if isinstance(value, tuple) else value
        yield f"  {leaf}: {shown}".ljust(44) + ("" if source == "default" else f"# {source}")


def _costs(
    config: Config, plan: BatchPlan, dataset: SegmentationDataset, total_steps: int, device: torch.device
) -> Iterator[str]:
    """Memory and time from one measured pass, of a whole micro-batch on a GPU and of one image on a CPU."""
    model, loss = measured_parts(config, dataset.classes.names)
    check_model(config, plan, model)
    note = single_image_note(config, plan, model)
    if note is not None:
        yield f"warning: {note}"
    num_images = plan.micro_batch if device.type == "cuda" else model.min_batch
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
    cost = measure_pass(model, loss, num_images, config.data.input_size, device, config.training.precision)
    memory = estimate_memory(model, config, plan, cost)
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averaged weights": memory.average,
        "activations": memory.activations,
        "head's activations of the other micro-batches": memory.joined_head,
        "workspace": memory.workspace,
        "caches of the libraries": memory.libraries,
        "ZeRO's buffer": memory.bucket,
    }
    listed = ", ".join(f"{name} {value / _MIB:.0f}" for name, value in parts.items() if value)
    yield f"memory per device in MiB: {listed}; {memory.total / _MIB:.0f} in all, on top of the imports"
    yield f"  activations measured on {num_images} image(s) at {size_text(config.data.image_size)} px on {where}"
    seconds = step_seconds(config, plan, cost)
    yield f"time per step: {seconds:.2f} s on {where}, communication and loading not included"
    whole = seconds * total_steps
    kind = "GPU" if device.type == "cuda" else "device"
    yield f"time for {total_steps} steps: {duration(whole)}, {whole * plan.world_size / 3600:.1f} {kind}-hours"
    if device.type != "cuda":
        yield "  this is this CPU's speed, not a GPU's: run the dry run in a short GPU job to plan hours there"
