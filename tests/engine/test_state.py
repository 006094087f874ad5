"""State by name: exported under one stage and number of ranks, imported under another."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.engine.state import EngineState
from tests.engine.test_parity import make_engine, own_batches
from tests.ranks import Group, run_on_ranks
from tests.tiny import tiny_segformer


def plain(state: EngineState | None) -> dict[str, Any]:
    """As NumPy: tensors do not outlive the rank that sent them. Nothing on ranks that have no state."""
    if state is None:
        return {}
    return {
        "parameters": {n: t.numpy() for n, t in state.parameters.items()},
        "buffers": {n: t.numpy() for n, t in state.buffers.items()},
        "moments": {k: {n: t.numpy() for n, t in m.items()} for k, m in state.moments.items()},
        "optimizer_step": state.optimizer_step,
        "loss_scaler": state.loss_scaler,
    }


def from_plain(raw: dict[str, Any]) -> EngineState:
    def tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    moments = {key: tensors(value) for key, value in raw["moments"].items()}
    return EngineState(
        tensors(raw["parameters"]), tensors(raw["buffers"]), moments, raw["optimizer_step"], raw["loss_scaler"]
    )


def first_half(group: Group, stage: int, steps: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    engine = make_engine(group, stage, overrides=overrides)
    for step in range(steps):
        engine.train_step(own_batches(step, engine.plan, group.rank), step)
    return plain(engine.export_state())


def second_half(
    group: Group, stage: int, raw: dict[str, Any], steps: int, overrides: tuple[str, ...]
) -> dict[str, Any]:
    engine = make_engine(group, stage, overrides=overrides)
    engine.import_state(from_plain(raw) if group.is_main else None)
    again = plain(engine.export_state())
    live = {engine.names[name]: value.numpy().copy() for name, value in engine.model.state_dict().items()}
    losses = []
    for step in range(steps, steps + 2):
        losses.append(engine.train_step(own_batches(step, engine.plan, group.rank), step).loss)
    return {"again": again, "live": live, "losses": losses, "end": plain(engine.export_state())}


def assert_imported(results: list[dict[str, Any]], raw: dict[str, Any]) -> None:
    """Every rank has the weights and buffers, and all together the moments, which the first exports again."""
    assert_equal(results[0]["again"], raw)
    assert all(result["again"] == {} for result in results[1:])
    for result in results:
        assert result["live"].keys() == raw["parameters"].keys() | raw["buffers"].keys()
        for name, value in result["live"].items():
            np.testing.assert_array_equal(value, {**raw["parameters"], **raw["buffers"]}[name], err_msg=name)


HEAD = ("training.optimizer.head_lr_multiplier=10.0",)


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["optimizer_step"] == right["optimizer_step"]
    for kind in ("parameters", "buffers"):
        for name, value in left[kind].items():
            np.testing.assert_array_equal(value, right[kind][name], err_msg=name)
    assert left["moments"].keys() == right["moments"].keys()
    for key, moments in left["moments"].items():
        assert moments.keys() == right["moments"][key].keys()
        for name, value in moments.items():
            np.testing.assert_array_equal(value, right["moments"][key][name], err_msg=name)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Four undisturbed steps on 2 ranks under stage 1."""
    return run_on_ranks(2, first_half, 1, 4, HEAD)[0]


@pytest.fixture(scope="module")
def half() -> dict[str, Any]:
    return run_on_ranks(2, first_half, 2, 2, HEAD)[0]


def test_every_parameter_has_its_moments(half: dict[str, Any]) -> None:
    assert half["optimizer_step"] == 2
    for key in ("exp_avg", "exp_avg_sq"):
        assert half["moments"][key].keys() == half["parameters"].keys()
        moved = sum(bool(np.any(value)) for value in half["moments"][key].values())
        assert moved == len(half["parameters"])
    assert "decode_head.linear_c.0.proj.weight" in half["parameters"], "names are the portable ones"


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_same_ranks_continue_bit_for_bit_under_any_stage(
    whole: dict[str, Any], half: dict[str, Any], stage: int
) -> None:
    results = run_on_ranks(2, second_half, stage, half, 2, HEAD)
    assert_imported(results, half)
    if stage > 0:
        assert_equal(results[0]["end"], whole)
    else:
        for name, value in whole["parameters"].items():
            np.testing.assert_allclose(results[0]["end"]["parameters"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 1), (3, 2)])
def test_other_ranks_continue_to_rounding(half: dict[str, Any], world: int, stage: int) -> None:
    reference = run_on_ranks(2, second_half, 1, half, 2, HEAD)[0]
    results = run_on_ranks(world, second_half, stage, half, 2, HEAD)
    assert_imported(results, half)
    for result in results:
        np.testing.assert_allclose(result["losses"], reference["losses"], rtol=1e-5)


def test_before_the_first_step_there_are_no_moments() -> None:
    raw = run_on_ranks(1, first_half, 1, 0, ())[0]
    assert raw["optimizer_step"] == 0
    assert raw["moments"] == {}


def frozen(group: Group, stage: int) -> dict[str, Any]:
    from segformer_spark.config.batch import BatchPlan
    from segformer_spark.config.load import load_config
    from segformer_spark.engine.engine import Engine
    from segformer_spark.losses.build import build_loss

    config = load_config(overrides=[f"deepspeed.zero_stage={stage}"]).config
    model = tiny_segformer(["a", "b", "c"], freeze_backbone=True, seed=1)
    loss = build_loss(config.training.loss, 3, 255, group.differentiable_sum)
    engine = Engine(model, loss, config, BatchPlan(3, 1, 2), group)
    engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    state = engine.export_state()
    before = plain(state)
    engine.import_state(state)
    if group.is_main:
        assert_equal(plain(engine.export_state()), before)
    else:
        assert engine.export_state() is None
    return before


def test_a_frozen_encoder_is_stored_without_moments() -> None:
    state = run_on_ranks(2, frozen, 2)[0]
    assert all(name.startswith("decode_head.") for name in state["moments"]["exp_avg"])
    assert any(name.startswith("segformer.encoder.") for name in state["parameters"])


def exported_and_stepped(group: Group, stage: int, overrides: tuple[str, ...]) -> bool:
    """Whether an exported state is the same after more steps: a checkpoint is written while training goes on."""
    engine = make_engine(group, stage, overrides=overrides)
    engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    state = engine.export_state()
    before = copy.deepcopy(state)
    for step in (1, 2):
        engine.train_step(own_batches(step, engine.plan, group.rank), step)
    if state is None or before is None:
        return True
    assert_equal(plain(state), plain(before))
    for name, value in (before.average or {}).items():
        assert state.average is not None
        assert torch.equal(state.average[name], value)
    return True


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (1, 1), (2, 2)])
def test_an_exported_state_is_a_copy(world: int, stage: int) -> None:
    settings = ("training.ema.decay=0.9",)
    assert run_on_ranks(world, exported_and_stepped, stage, settings) == [True] * world
