"""An engine with its batches, for whoever needs optimizer steps without a run: tuning, parity checks, benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.data.sampler import Position
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.launched import StepResult
from segformer_spark.losses.build import WeightedSum
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.training.setup import Setup


class Stepper:
    """Takes one optimizer step per call."""

    def __init__(self, engine: Engine, batches: Iterator[TrainBatch]) -> None:
        self.engine, self._batches, self.num_steps = engine, batches, 0

    def step(self, lr: float | None = None) -> StepResult:
        """The next step, at `lr` or the optimizer's own rate. Collective."""
        if lr is not None:
            self.engine.set_lr(lr)
        batches = list(itertools.islice(self._batches, self.engine.plan.accumulation_steps))
        result = self.engine.train_step(batches, self.num_steps)
        self.num_steps += 1
        return result


@contextmanager
def open_stepper(
    model: SegmentationModel,
    loss: WeightedSum,
    config: Config,
    plan: BatchPlan,
    group: Group,
    batches: Iterator[TrainBatch],
) -> Iterator[Stepper]:
    """An engine of these parts, closed at the end of the block. Collective."""
    engine = Engine(model, loss, config, plan, group)
    try:
        yield Stepper(engine, batches)
    finally:
        engine.close()


@contextmanager
def open_configured_stepper(config: Config, setup: Setup, group: Group) -> Iterator[Stepper]:
    """The same on the configured data, epoch after epoch; engine and loader are closed at the end. Collective."""
    loader = TrainLoader(setup.train_set, config, setup.sampler, pin=group.device.type == "cuda")
    try:
        with open_stepper(setup.model, setup.loss, config, setup.plan, group, _endless(loader)) as stepper:
            yield stepper
    finally:
        loader.close()


def _endless(loader: TrainLoader) -> Iterator[TrainBatch]:
    for epoch in itertools.count():
        loader.sampler.start_at(Position(epoch, 0))
        yield from loader
