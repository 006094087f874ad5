from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ReduceLROnPlateau

from segformer_spark.config.schema import SchedulerConfig
from segformer_spark.errors import ConfigError
from segformer_spark.training.schedule import Plateau, Schedule, build_schedule


def schedule(shape: str, *, warmup: int = 10, total: int = 110, floor: float = 0.0, power: float = 1.0) -> Schedule:
    return Schedule(SchedulerConfig(type=shape, min_lr_ratio=floor, power=power), 2.0, warmup, total)  # type: ignore[arg-type]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    values = [schedule("warmup_cosine").lr(step) for step in range(11)]
    assert values[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert values[10] == 2.0


def test_cosine_is_a_cosine_and_not_a_line() -> None:
    s = schedule("warmup_cosine")
    for step in range(10, 110):
        assert s.lr(step) == pytest.approx(1 + math.cos(math.pi * (step - 10) / 100))
    assert s.lr(35) > schedule("warmup_linear").lr(35) * 1.1


def test_linear_and_poly() -> None:
    assert schedule("warmup_linear").lr(60) == pytest.approx(1.0)
    assert schedule("warmup_poly").lr(60) == pytest.approx(1.0)
    assert schedule("warmup_poly", power=2.0).lr(60) == pytest.approx(0.5)
    assert schedule("constant").lr(100) == 2.0


@given(
    st.sampled_from(["warmup_cosine", "warmup_poly", "warmup_linear"]),
    st.integers(0, 50),
    st.integers(60, 500),
    st.floats(0, 1),
    st.floats(0.5, 3),
)
def test_it_rises_then_falls_to_the_floor(shape: str, warmup: int, total: int, floor: float, power: float) -> None:
    s = schedule(shape, warmup=warmup, total=total, floor=floor, power=power)
    values = [s.lr(step) for step in range(total)]
    assert all(a <= b + 1e-12 for a, b in zip(values[:warmup], values[1 : warmup + 1], strict=False))
    assert all(a >= b - 1e-12 for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))
    assert min(values[warmup:]) >= 2 * floor - 1e-12
    assert s.lr(total) == pytest.approx(2 * floor)


def test_warm_up_in_epochs_or_steps() -> None:
    assert build_schedule(SchedulerConfig(warmup_epochs=1.5), 1.0, 20, 100, 5).warmup_steps == 30
    assert build_schedule(SchedulerConfig(warmup_epochs=1.5, warmup_steps=0), 1.0, 20, 100, 5).warmup_steps == 0
    with pytest.raises(ConfigError, match="warm-up takes 100 steps, the whole training 100"):
        build_schedule(SchedulerConfig(warmup_epochs=5.0), 1.0, 20, 100, 5)


def test_max_steps_may_end_a_training_within_its_warm_up() -> None:
    short = build_schedule(SchedulerConfig(warmup_epochs=2.0), 1.0, 20, 1, epochs=5)
    assert short.lr(0) == 1 / 40
    with pytest.raises(ConfigError, match="warm-up takes 100 steps, the whole training 100"):
        build_schedule(SchedulerConfig(warmup_epochs=5.0), 1.0, 20, 1, epochs=5)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1.5])
def test_restarts_are_torchs(factor: float) -> None:
    """torch takes whole factors only; of others the cycles are checked by hand."""
    config = SchedulerConfig(
        type="cosine_restarts", warmup_steps=4, restart_epochs=0.5, restart_factor=factor, min_lr_ratio=0.1
    )
    own = build_schedule(config, 2.0, 20, 200, 10)
    values = [own.lr(4 + step) for step in range(100)]
    starts = [step for step in range(1, 100) if values[step] > values[step - 1]]
    assert starts == {1.0: list(range(10, 100, 10)), 2.0: [10, 30, 70], 1.5: [10, 25, 48, 82]}[factor]
    if factor != 1.5:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        theirs = CosineAnnealingWarmRestarts(optimizer, 10, int(factor), eta_min=0.2)
        for value in values:
            assert value == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_plateau_lowers_when_torchs_does(scores: list[int], patience: int) -> None:
    """torch reduces once more than `patience` validations are without a rise, and its first score is no rise."""
    plateau, optimizer = Plateau(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=patience - 1, threshold=0.0, eps=0.0)
    own = Schedule(SchedulerConfig(type="plateau", plateau_factor=0.5), 1.0, 0, 100)
    for score in scores:
        plateau.update(score, patience)
        theirs.step(score)
        assert own.lr(5, plateau.reductions) == optimizer.param_groups[0]["lr"]
    before = dataclasses.replace(plateau)
    plateau.update(None, patience)
    assert plateau == before


def test_plateau_keeps_the_warm_up_and_the_floor() -> None:
    own = Schedule(SchedulerConfig(type="plateau", min_lr_ratio=0.05), 2.0, 10, 100)
    assert own.lr(4, 1) == 1.0
    assert [own.lr(20, n) for n in range(3)] == [2.0, pytest.approx(0.2), pytest.approx(0.1)]
