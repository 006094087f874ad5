"""Every optimizer: torch's own steps under any ZeRO stage and number of ranks, continued from what was exported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.data.transforms import normalize_images
from segformer_spark.engine.optimizer import num_state_tensors, parameter_groups
from segformer_spark.losses.build import build_loss
from tests.engine.test_parity import global_batch
from tests.engine.test_state import assert_equal, assert_imported, first_half, second_half
from tests.ranks import run_on_ranks
from tests.tiny import tiny_segformer

OPTIMIZERS = {
    "adam": ("training.optimizer.type=adam",),
    "sgd": ("training.optimizer.type=sgd",),
    "nesterov": ("training.optimizer.type=sgd", "training.optimizer.nesterov=true", "training.optimizer.momentum=0.8"),
    "plain sgd": ("training.optimizer.type=sgd", "training.optimizer.momentum=0"),
}
COMMON = ("training.optimizer.lr=1e-3", "training.optimizer.weight_decay=0.1")
every_optimizer = pytest.mark.parametrize(
    "name", ["adam", "nesterov", *(pytest.param(name, marks=pytest.mark.sweep) for name in ("sgd", "plain sgd"))]
)
"""sgd and plain sgd are nesterov with less."""


def settings(name: str) -> tuple[str, ...]:
    return (*OPTIMIZERS[name], *COMMON)


def torchs(name: str, steps: int) -> dict[str, np.ndarray[Any, Any]]:
    """The weights after `steps` steps of torch's optimizer, one tensor after the other, on the whole batch."""
    config = load_config(overrides=settings(name)).config.training
    own = config.optimizer
    model = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0, seed=3).train()
    loss = build_loss(config.loss, 3, 255)
    groups = parameter_groups(model, own)
    plain: dict[str, Any] = {"fused": False, "foreach": False}
    optimizer: torch.optim.Optimizer
    if own.type == "sgd":
        optimizer = torch.optim.SGD(groups, lr=own.lr, momentum=own.momentum, nesterov=own.nesterov, **plain)
    else:
        optimizer = torch.optim.Adam(groups, lr=own.lr, **plain)
    for step in range(steps):
        batch = global_batch(step)
        optimizer.zero_grad()
        loss.of_outputs([model(normalize_images(batch.images))], batch.masks).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    names = model.stored_names()
    return {names[live]: value.numpy() for live, value in model.state_dict().items()}


@every_optimizer
@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 1), (2, 2), (3, 1)])
def test_steps_are_torchs(name: str, world: int, stage: int) -> None:
    state = run_on_ranks(world, first_half, stage, 3, settings(name))[0]
    assert state["optimizer_step"] == 3
    assert len(state["moments"]) == num_state_tensors(load_config(overrides=settings(name)).config.training.optimizer)
    for key, expected in torchs(name, 3).items():
        if key in state["parameters"]:
            tolerance = {"rtol": 1e-3, "atol": 3e-4} if name == "adam" else {"rtol": 1e-4, "atol": 1e-6}
            np.testing.assert_allclose(state["parameters"][key], expected, err_msg=key, **tolerance)


@every_optimizer
def test_any_stage_and_number_of_ranks_goes_on(name: str) -> None:
    """Bit for bit on as many ranks, to rounding on others."""
    whole = run_on_ranks(2, first_half, 1, 4, settings(name))[0]
    half = run_on_ranks(2, first_half, 2, 2, settings(name))[0]
    for stage in (1, 2):
        results = run_on_ranks(2, second_half, stage, half, 2, settings(name))
        assert_imported(results, half)
        assert_equal(results[0]["end"], whole)
        reference = results[0]
    for world, stage in ((1, 0), (3, 1)):
        results = run_on_ranks(world, second_half, stage, half, 2, settings(name))
        assert_imported(results, half)
        assert results[0]["end"]["optimizer_step"] == 4
        np.testing.assert_allclose(results[0]["losses"], reference["losses"], rtol=1e-5)
