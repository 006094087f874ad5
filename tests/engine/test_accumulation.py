"""Exact accumulation: N micro-batches are one batch, in loss, Dice, batch norm and gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.test_parity import GLOBAL_BATCH, STEPS, make_engine, own_batches, train
from tests.ranks import Group, run_on_ranks
from tests.tiny import tiny_segformer

STATISTICS = ("decode_head.batch_norm.running_mean", "decode_head.batch_norm.running_var")


@pytest.fixture(scope="module")
def one_batch() -> dict[str, Any]:
    """All images in one forward pass of one rank: nothing accumulated."""
    return run_on_ranks(1, train, 0)[0]


@pytest.mark.parametrize(
    ("world", "stage", "micro"),
    [
        (1, 0, 1),
        (1, 2, 3),
        (2, 1, 1),
        (3, 2, 1),
        *(pytest.param(*one, marks=pytest.mark.sweep) for one in [(1, 1, 2), (2, 0, 1), (2, 2, 1), (3, 1, 1)]),
    ],
)
def test_n_micro_batches_are_one_batch(one_batch: dict[str, Any], world: int, stage: int, micro: int) -> None:
    for result in run_on_ranks(world, train, stage, micro):
        np.testing.assert_allclose(result["losses"], one_batch["losses"], rtol=1e-5)
        np.testing.assert_allclose(result["norms"], one_batch["norms"], rtol=1e-5)
        for name in STATISTICS:
            np.testing.assert_allclose(result["weights"][name], one_batch["weights"][name], rtol=1e-4, atol=3e-6)


def mean_of_losses(group: Group, micro: int) -> list[float]:
    engine = make_engine(group, 1, micro=micro, overrides=("training.accumulation=mean",))
    return [engine.train_step(own_batches(s, engine.plan, group.rank), s).loss for s in range(STEPS)]


def test_the_mean_of_losses_is_something_else(one_batch: dict[str, Any]) -> None:
    """Uneven ignored areas and Dice's quotient: the test above would not pass by accident."""
    losses = run_on_ranks(1, mean_of_losses, 1)[0]
    assert max(abs(a - b) / b for a, b in zip(losses, one_batch["losses"], strict=True)) > 1e-4


def frozen(group: Group, micro: int) -> dict[str, Any]:
    from segformer_spark.config.batch import BatchPlan
    from segformer_spark.config.load import load_config
    from segformer_spark.engine.engine import Engine
    from segformer_spark.losses.build import build_loss

    config = load_config(overrides=["training.gradient_clip=0.5"]).config
    model = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0, freeze_backbone=True, seed=3)
    loss = build_loss(config.training.loss, 3, 255, group.differentiable_sum)
    engine = Engine(model, loss, config, BatchPlan(micro, GLOBAL_BATCH // micro, 1), group)
    results = [engine.train_step(own_batches(s, engine.plan, 0), s) for s in range(STEPS)]
    return {"losses": [r.loss for r in results], "norms": [r.grad_norm for r in results]}


def test_with_a_frozen_encoder() -> None:
    whole, parts = (run_on_ranks(1, frozen, micro)[0] for micro in (GLOBAL_BATCH, 2))
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-5)
    np.testing.assert_allclose(parts["norms"], whole["norms"], rtol=1e-5)


def bf16(group: Group, micro: int) -> list[float]:
    engine = make_engine(group, 1, micro=micro, overrides=("training.precision=bf16",))
    return [engine.train_step(own_batches(s, engine.plan, group.rank), s).loss for s in range(STEPS)]


def test_under_bf16_it_is_close() -> None:
    np.testing.assert_allclose(run_on_ranks(1, bf16, 2)[0], run_on_ranks(1, bf16, GLOBAL_BATCH)[0], rtol=2e-2)
