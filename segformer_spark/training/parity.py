"""Self-test: DDP (stage 0), ZeRO-1 and ZeRO-2 train alike on the user's own configuration."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from segformer_spark.config.schema import Config
from segformer_spark.data.loader import TrainBatch, TrainLoader
from segformer_spark.data.sampler import Position
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import ConfigError
from segformer_spark.training.setup import prepare

STAGES = (0, 1, 2)
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@dataclass(frozen=True)
class StageResult:
    """Losses and gradient norms of the first steps under one stage, and the largest relative difference to stage 0."""

    stage: int
    losses: list[float]
    grad_norms: list[float]
    difference: float


@dataclass(frozen=True)
class Parity:
    """All stages, and the difference that passes."""

    results: list[StageResult]
    tolerance: float

    @property
    def holds(self) -> bool:
        return all(result.difference <= self.tolerance for result in self.results)


def compare_stages(config: Config, group: Group, num_steps: int = 3) -> Parity:
    """Train the same first steps under each stage from the same weights. Collective.

    Raises:
        ConfigError: fp16, which stage 0 cannot do.
        UserError: configuration or data cannot be used.
    """
    precision = config.training.precision
    if precision not in _TOLERANCE:
        raise ConfigError("doctor --parity: stage 0 has no fp16, so there is nothing to compare; use bf16 or fp32")
    results: list[StageResult] = []
    for stage in STAGES:
        losses, norms = _train(_with_stage(config, stage), group, num_steps)
        first = results[0] if results else None
        pairs = [*zip(losses, first.losses, strict=True), *zip(norms, first.grad_norms, strict=True)] if first else []
        difference = max((abs(a - b) / max(abs(b), 1e-12) for a, b in pairs), default=0.0)
        results.append(StageResult(stage, losses, norms, difference))
    return Parity(results, _TOLERANCE[precision])


def _with_stage(config: Config, stage: int) -> Config:
    deepspeed = config.deepspeed.model_copy(update={"zero_stage": stage, "config": None})
    return config.model_copy(update={"deepspeed": deepspeed})


def _train(config: Config, group: Group, num_steps: int) -> tuple[list[float], list[float]]:
    setup = prepare(config, group)
    engine = Engine(setup.model, setup.loss, config, setup.plan, group)
    setup.sampler.start_at(Position())
    batches = iter(TrainLoader(setup.train_set, config, setup.sampler, pin=False))
    losses, norms = [], []
    for step in range(min(num_steps, setup.sampler.steps_per_epoch)):
        engine.set_lr(setup.schedule.lr(step))
        own: list[TrainBatch] = [next(batches) for _ in range(setup.plan.accumulation_steps)]
        result = engine.train_step(own, step)
        losses.append(result.loss)
        norms.append(float("nan") if result.grad_norm is None else result.grad_norm)
    engine.close()
    del engine, setup
    gc.collect()
    return losses, norms


def describe(parity: Parity) -> list[str]:
    """The comparison as lines of a table."""
    lines = [f"{'stage':<8}{'loss per step':<36}{'gradient norm per step':<36}{'difference to stage 0':>22}"]
    for result in parity.results:
        losses = " ".join(f"{value:.6f}" for value in result.losses)
        norms = " ".join(f"{value:.6f}" for value in result.grad_norms)
        lines.append(f"{result.stage:<8}{losses:<36}{norms:<36}{result.difference:>22.1e}")
    verdict = "OK" if parity.holds else "FAILED"
    lines.append(f"{verdict}: relative differences of at most {parity.tolerance:.0e} pass")
    return lines
