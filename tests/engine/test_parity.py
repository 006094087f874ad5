"""The same global batch gives the same training, whatever the ZeRO stage and the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.load import load_config
from segformer_spark.data.loader import TrainBatch
from segformer_spark.engine.engine import Engine
from segformer_spark.losses.build import build_loss
from tests.ranks import Group, run_on_ranks
from tests.tiny import tiny_segformer

GLOBAL_BATCH, SIDE, STEPS = 6, 64, 3


def make_engine(group: Group, stage: int, *, micro: int | None = None, overrides: tuple[str, ...] = ()) -> Engine:
    config = load_config(overrides=[f"deepspeed.zero_stage={stage}", "training.gradient_clip=0.5", *overrides]).config
    micro = micro or GLOBAL_BATCH // group.world_size
    plan = BatchPlan(micro, GLOBAL_BATCH // (micro * group.world_size), group.world_size)
    model = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0, seed=3)
    loss = build_loss(config.training.loss, 3, 255, group.differentiable_sum)
    return Engine(model, loss, config, plan, group)


def global_batch(step: int) -> TrainBatch:
    rng = np.random.default_rng([7, step])
    masks = rng.integers(0, 3, (GLOBAL_BATCH, SIDE, SIDE)).astype(np.uint8)
    # Uneven ignored areas: a mean of per-rank means would differ from the global mean.
    for image in range(GLOBAL_BATCH):
        masks[image, : image * 8] = 255
    images = rng.integers(0, 255, (GLOBAL_BATCH, 3, SIDE, SIDE)).astype(np.uint8)
    return TrainBatch(torch.from_numpy(images), torch.from_numpy(masks))


def own_batches(step: int, plan: BatchPlan, rank: int) -> list[TrainBatch]:
    whole, micro = global_batch(step), plan.micro_batch
    starts = [(part * plan.world_size + rank) * micro for part in range(plan.accumulation_steps)]
    return [TrainBatch(whole.images[s : s + micro], whole.masks[s : s + micro]) for s in starts]


def train(group: Group, stage: int, micro: int | None = None) -> dict[str, Any]:
    engine = make_engine(group, stage, micro=micro)
    losses, norms = [], []
    for step in range(STEPS):
        result = engine.train_step(own_batches(step, engine.plan, group.rank), step)
        assert result.applied
        losses.append(result.loss)
        norms.append(result.grad_norm)
    weights = {engine.names[name]: value for name, value in engine.model.state_dict().items()}
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: value.double().numpy() for name, value in weights.items()},
    }


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return run_on_ranks(1, train, 0)[0]


@pytest.mark.parametrize(("world", "stage"), [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 1)])
def test_loss_and_gradient_norm_do_not_depend_on_stage_or_ranks(
    reference: dict[str, Any], world: int, stage: int
) -> None:
    results = run_on_ranks(world, train, stage)
    for result in results:
        np.testing.assert_allclose(result["losses"], reference["losses"], rtol=1e-5)
        np.testing.assert_allclose(result["norms"], reference["norms"], rtol=1e-5)


def test_stages_agree_on_the_same_ranks() -> None:
    runs = [run_on_ranks(2, train, stage)[0] for stage in (0, 1, 2)]
    for run in runs[1:]:
        np.testing.assert_allclose(run["losses"], runs[0]["losses"], rtol=1e-6)
        np.testing.assert_allclose(run["norms"], runs[0]["norms"], rtol=3e-6)
        np.testing.assert_array_equal(run["losses"], runs[1]["losses"])


def test_all_ranks_hold_the_same_weights_and_statistics() -> None:
    first, second = run_on_ranks(2, train, 2)
    for name, value in first["weights"].items():
        np.testing.assert_array_equal(value, second["weights"][name], err_msg=name)
    assert first["weights"]["decode_head.batch_norm.running_mean"].any()
