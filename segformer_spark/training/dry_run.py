"""`train --dry-run`: what would run, what memory and time it would take, without touching anything."""

from __future__ import annotations

from collections.abc import Iterator

from segformer_spark.config.batch import plan_batches
from segformer_spark.config.deepspeed import deepspeed_config, deepspeed_file
from segformer_spark.config.fields import flatten
from segformer_spark.config.load import ResolvedConfig, run_path
from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.training.plan import (
    lr_warning,
    open_checked,
    plan_schedule,
    resolve_loss,
)


def describe(resolved: ResolvedConfig, world_size: int, *, measure: bool) -> Iterator[str]:
    """Lines: every value with its source, the batch arithmetic, the steps; then memory and time.

    Args:
        measure: whether one micro-batch is measured, on the device that training would take.

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
    sizes = {config.data.train_split: len(train_set), config.data.val_split: len(val_set)}
    yield f"images: {', '.join(f'{size} {config.data.describe_split(split)}' for split, size in sizes.items())}"
    left_out = len(train_set) - per_epoch * plan.global_batch
    yield f"steps per epoch: {per_epoch} ({left_out} images left out of each epoch)"
    yield f"steps in all: {total}, of which {schedule.warmup_steps} warm-up"
    yield f"peak learning rate: {schedule.peak:g} (lr_scaling {config.training.optimizer.lr_scaling})"
    loss = resolve_loss(config, train_set)
    loss.refuse_other_classes(len(train_set.classes))
    weights = loss.class_weights
    if weights is not None:
        shown = ", ".join(f"{n} {w:.3g}" for n, w in zip(train_set.classes.names, weights, strict=True))
        yield f"class weights: {shown}"
    warning = lr_warning(config, plan)
    if warning is not None:
        yield f"warning: {warning}"
    if measure:
        # What comes now imports torch and transformers, which takes seconds.
        from segformer_spark.training.dry_run_costs import measured_costs

        yield from measured_costs(config, plan, train_set, loss, total)


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
