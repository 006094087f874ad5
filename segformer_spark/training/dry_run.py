"""`train --dry-run`: what would run, without touching anything."""

from __future__ import annotations

from collections.abc import Iterator

from segformer_spark.config.batch import plan_batches
from segformer_spark.config.deepspeed import deepspeed_config, deepspeed_file
from segformer_spark.config.fields import flatten
from segformer_spark.config.load import ResolvedConfig, run_path
from segformer_spark.config.precision import refuse_fp16_on_cpu
from segformer_spark.data.registry import open_dataset
from segformer_spark.training.plan import check_dataset, plan_steps
from segformer_spark.training.schedule import build_schedule


def describe(resolved: ResolvedConfig, world_size: int) -> Iterator[str]:
    """Lines: every value with its source, the batch arithmetic, the steps.

    Raises:
        UserError: the configuration or the data set could not be used for training either.
    """
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
    refuse_fp16_on_cpu(config.training.precision, config.hardware.device)
    plan = plan_batches(config.training, world_size)
    deepspeed_config(config, plan)
    yield f"batch: {plan}"
    yield f"deepspeed: {deepspeed_file(config).name}"
    train_set = open_dataset(config.data.dataset, config.data.root, config.data.train_split)
    val_set = open_dataset(config.data.dataset, config.data.root, config.data.val_split)
    check_dataset(config, val_set)
    per_epoch = plan.steps_per_epoch(len(train_set))
    total = plan_steps(config, per_epoch)
    schedule = build_schedule(config.training.scheduler, config.training.optimizer.lr, per_epoch, total)
    yield f"images: {len(train_set)} {config.data.train_split}, {len(val_set)} {config.data.val_split}"
    left_out = len(train_set) - per_epoch * plan.global_batch
    yield f"steps per epoch: {per_epoch} ({left_out} images left out of each epoch)"
    yield f"steps in all: {total}, of which {schedule.warmup_steps} warm-up"
