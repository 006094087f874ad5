"""Self-test: DDP (stage 0), ZeRO-1 and ZeRO-2 train alike on the user's own configuration."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass

from torch import Tensor

from segformer_spark.config.schema import Config
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import ConfigError, UserError
from segformer_spark.training.setup import prepare
from segformer_spark.training.stepper import open_configured_stepper

STAGES = (0, 1, 2)
_TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
_UPDATE_TOLERANCE = 0.1
"""AdamW moves a weight whose gradient is 0 but for rounding by a whole step, either way: some always differ."""


@dataclass(frozen=True)
class StageResult:
    """The first steps under one stage, against those under stage 0.

    Attributes:
        difference: largest relative difference of a loss or gradient norm; nan where one is not finite.
        update_difference: norm of the difference of the weights, relative to how far stage 0 moved them.
    """

    stage: int
    losses: list[float]
    grad_norms: list[float]
    difference: float
    update_difference: float


@dataclass(frozen=True)
class Parity:
    """All stages, and the difference of losses and norms that passes."""

    results: list[StageResult]
    tolerance: float

    @property
    def holds(self) -> bool:
        return all(
            result.difference <= self.tolerance and result.update_difference <= _UPDATE_TOLERANCE
            for result in self.results
        )


@dataclass(frozen=True)
class _Trace:
    losses: list[float]
    grad_norms: list[float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def compare_stages(config: Config, group: Group, num_steps: int = 3) -> Parity:
    """Train the same first steps under each stage from the same weights, at the peak learning rate. Collective.

    Raises:
        ConfigError: fp16, which stage 0 cannot do.
        UserError: configuration or data cannot be used, or an epoch has fewer steps.
    """
    precision = config.training.precision
    if precision not in _TOLERANCE:
        raise ConfigError("doctor --parity: stage 0 has no fp16, so there is nothing to compare; use bf16 or fp32")
    first: _Trace | None = None
    results: list[StageResult] = []
    for stage in STAGES:
        trace = _train(_with_stage(config, stage), group, num_steps)
        first = first or trace
        results.append(
            StageResult(
                stage, trace.losses, trace.grad_norms, _difference(trace, first), _update_difference(trace, first)
            )
        )
    return Parity(results, _TOLERANCE[precision])


def _difference(trace: _Trace, first: _Trace) -> float:
    pairs = zip([*trace.losses, *trace.grad_norms], [*first.losses, *first.grad_norms], strict=True)
    differences = [abs(own - reference) / max(abs(reference), 1e-12) for own, reference in pairs]
    return max(differences) if all(math.isfinite(value) for value in differences) else math.nan


def _update_difference(trace: _Trace, first: _Trace) -> float:
    apart = sum(float((trace.after[n] - first.after[n]).square().sum()) for n in first.after)
    moved = sum(float((first.after[n] - first.before[n]).square().sum()) for n in first.after)
    return math.sqrt(apart / moved) if moved > 0 else math.nan


def _with_stage(config: Config, stage: int) -> Config:
    deepspeed = config.deepspeed.model_copy(update={"zero_stage": stage, "config": None})
    return config.model_copy(update={"deepspeed": deepspeed})


def _train(config: Config, group: Group, num_steps: int) -> _Trace:
    setup = prepare(config, group)
    if setup.sampler.steps_per_epoch < num_steps:
        raise UserError(
            f"doctor --parity: an epoch has {setup.sampler.steps_per_epoch} steps, {num_steps} were asked for; lower "
            "--steps or the batch"
        )
    trace = _Trace([], [], {}, {})
    with open_configured_stepper(config, setup, group) as stepper:
        trace.before.update(_trained(stepper.engine))
        for _ in range(num_steps):
            result = stepper.step(setup.schedule.peak)  # warm-up would hide what the optimizer does
            trace.losses.append(result.loss)
            trace.grad_norms.append(math.nan if result.grad_norm is None else result.grad_norm)
        trace.after.update(_trained(stepper.engine))
    del stepper, setup
    gc.collect()
    return trace


def _trained(engine: Engine) -> dict[str, Tensor]:
    return {n: p.detach().float().cpu().clone() for n, p in engine.model.named_parameters() if p.requires_grad}


def describe(parity: Parity) -> list[str]:
    """The comparison as lines of a table."""
    lines = [f"{'stage':<7}{'loss per step':<32}{'gradient norm per step':<32}"]
    lines[0] += f"{'difference':>11}{'of updates':>12}"
    for result in parity.results:
        losses = " ".join(f"{value:.6f}" for value in result.losses)
        norms = " ".join(f"{value:.6f}" for value in result.grad_norms)
        lines.append(
            f"{result.stage:<7}{losses:<32}{norms:<32}{result.difference:>11.1e}{result.update_difference:>12.1e}"
        )
    verdict = "OK" if parity.holds else "FAILED"
    lines.append(
        f"{verdict}: relative to stage 0, {parity.tolerance:.0e} passes for losses and norms, "
        f"{_UPDATE_TOLERANCE:g} for updates"
    )
    return lines
