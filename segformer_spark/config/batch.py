"""Batch arithmetic: micro-batch x accumulation x world size = global batch."""

from __future__ import annotations

from dataclasses import dataclass

from segformer_spark.config.schema import TrainingConfig
from segformer_spark.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is composed of forward passes."""

    micro_batch: int
    accumulation_steps: int
    world_size: int

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all ranks."""
        return self.micro_batch * self.accumulation_steps * self.world_size

    def steps_per_epoch(self, num_images: int) -> int:
        """Optimizer steps per epoch; the images of an incomplete last batch wait for another epoch's order.

        Raises:
            ConfigError: the split is smaller than one global batch.
        """
        if num_images < self.global_batch:
            raise ConfigError(
                f"the training split has {num_images} images, one optimizer step takes {self}; "
                "lower training.batch_size or use fewer devices"
            )
        return num_images // self.global_batch

    def __str__(self) -> str:
        return (
            f"{self.micro_batch} (micro-batch) x {self.accumulation_steps} (accumulation) x "
            f"{self.world_size} (world) = {self.global_batch} images"
        )


def plan_batches(training: TrainingConfig, world_size: int) -> BatchPlan:
    """Resolve the batch arithmetic for `world_size` ranks.

    Raises:
        ConfigError: global_batch_size does not divide, or contradicts accumulation_steps.
    """
    per_pass = training.batch_size * world_size
    if training.global_batch_size is None:
        return BatchPlan(training.batch_size, training.accumulation_steps or 1, world_size)
    accumulation, rest = divmod(training.global_batch_size, per_pass)
    if rest or accumulation == 0:
        raise ConfigError(
            f"training.global_batch_size {training.global_batch_size} is not a multiple of batch_size x world size = "
            f"{training.batch_size} x {world_size} = {per_pass}; choose training.batch_size so that it divides"
        )
    if training.accumulation_steps not in (None, accumulation):
        raise ConfigError(
            f"training.accumulation_steps {training.accumulation_steps} contradicts global_batch_size "
            f"{training.global_batch_size}, which needs {accumulation} on {world_size} ranks; leave one of them out"
        )
    return BatchPlan(training.batch_size, accumulation, world_size)
