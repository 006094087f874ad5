from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.batch import BatchPlan, plan_batches
from segformer_spark.config.schema import TrainingConfig
from segformer_spark.errors import ConfigError


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 32))
def test_accumulation_follows_from_the_global_batch(micro: int, accumulation: int, world: int) -> None:
    total = micro * accumulation * world
    plan = plan_batches(TrainingConfig(batch_size=micro, global_batch_size=total), world)
    assert plan == BatchPlan(micro, accumulation, world)
    assert plan.global_batch == total


def test_without_a_global_batch() -> None:
    assert plan_batches(TrainingConfig(batch_size=8, accumulation_steps=2), 4).global_batch == 64


@pytest.mark.parametrize("total", [7, 4, 12])
def test_a_global_batch_that_does_not_divide(total: int) -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        plan_batches(TrainingConfig(batch_size=4, global_batch_size=total), 2)


def test_contradiction() -> None:
    with pytest.raises(ConfigError, match="contradicts"):
        plan_batches(TrainingConfig(batch_size=4, global_batch_size=16, accumulation_steps=3), 2)


def test_steps_per_epoch() -> None:
    plan = BatchPlan(4, 2, 2)
    assert plan.steps_per_epoch(50) == 3
    with pytest.raises(ConfigError, match="15 images"):
        plan.steps_per_epoch(15)
