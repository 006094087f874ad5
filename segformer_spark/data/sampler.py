"""The order of training samples: a function of (seed, epoch, position), not of rank, worker or history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from segformer_spark.config.batch import BatchPlan

SampleKey = tuple[int, int]
"""(epoch, index): what the loader hands to the data set."""


def epoch_order(num_images: int, seed: int, epoch: int, order: int = 0) -> NDArray[np.int64]:
    """The permutation of the training images in `epoch`.

    Args:
        order: another one for each number.
    """
    return np.random.default_rng([seed, epoch, 0x0EDE, *([order] if order else [])]).permutation(num_images)


@dataclass
class Position:
    """Where training stands: `epoch` from 0, `step`, the optimizer steps done in it, and the images' `order`."""

    epoch: int = 0
    step: int = 0
    order: int = 0


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Micro-batches of one rank for one epoch, from an optimizer step on.

    Global step s takes positions [s * G, (s + 1) * G) of the epoch's order; within it, accumulation step a of rank r
    takes the r-th micro-batch of the a-th slice of micro_batch * world_size. With the same G, any number of ranks
    trains on the same images in the same steps.
    """

    def __init__(self, num_images: int, plan: BatchPlan, rank: int, seed: int) -> None:
        self.num_images, self.plan, self.rank, self.seed = num_images, plan, rank, seed
        self.steps_per_epoch = plan.steps_per_epoch(num_images)
        self.position = Position()

    def start_at(self, position: Position) -> None:
        """Set where the next iteration begins."""
        self.position = replace(position)

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.position.step) * self.plan.accumulation_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_step = self.position.epoch, self.position.step
        order = epoch_order(self.num_images, self.seed, epoch, self.position.order)
        micro, accumulation, world = self.plan.micro_batch, self.plan.accumulation_steps, self.plan.world_size
        for step in range(first_step, self.steps_per_epoch):
            for part in range(accumulation):
                start = ((step * accumulation + part) * world + self.rank) * micro
                yield [(epoch, int(index)) for index in order[start : start + micro]]


def rank_indices(num_images: int, rank: int, world_size: int) -> list[int]:
    """The images that `rank` evaluates: every image on exactly one rank, none twice."""
    return list(range(rank, num_images, world_size))
