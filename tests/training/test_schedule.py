from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.schema import SchedulerConfig
from segformer_spark.errors import ConfigError
from segformer_spark.training.schedule import Schedule, build_schedule


def schedule(shape: str, *, warmup: int = 10, total: int = 110, floor: float = 0.0, power: float = 1.0) -> Schedule:
    return Schedule(2.0, shape, warmup, total, floor, power)


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
    assert build_schedule(SchedulerConfig(warmup_epochs=1.5), 1.0, 20, 100).warmup_steps == 30
    assert build_schedule(SchedulerConfig(warmup_epochs=1.5, warmup_steps=0), 1.0, 20, 100).warmup_steps == 0
    with pytest.raises(ConfigError, match="warm-up takes 100 steps, the whole training 100"):
        build_schedule(SchedulerConfig(warmup_epochs=5.0), 1.0, 20, 100)
