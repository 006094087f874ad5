"""fp16 over gloo. On CPUs it is refused, where nobody would want it; with both guards lifted a CPU can show what it
does: DeepSpeed's loss scaling, exact accumulation, and that its state is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from segformer_spark.engine.engine import Engine
from tests.engine.test_parity import make_engine, own_batches
from tests.engine.test_state import assert_equal, from_plain, plain
from tests.ranks import Group, run_on_ranks

FP16 = ("training.precision=fp16", "training.optimizer.lr=1e-3")


@contextmanager
def guards_lifted() -> Iterator[None]:
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segformer_spark.engine.engine.refuse_fp16_on_cpu", lambda *_: None)
        patch.setattr(CPU_Accelerator, "is_fp16_supported", lambda self: True)
        yield


def losses(group: Group, stage: int, micro: int, overrides: tuple[str, ...], steps: int = 6) -> dict[str, Any]:
    with guards_lifted():
        engine = make_engine(group, stage, micro=micro, overrides=overrides)
        results = [engine.train_step(own_batches(0, engine.plan, group.rank), step) for step in range(steps)]
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results if result.grad_norm is not None],
        "type": str(next(engine.model.parameters()).dtype),
    }


@pytest.mark.parametrize(
    ("world", "stage"),
    [pytest.param(1, 1, marks=pytest.mark.sweep), (2, 2), pytest.param(3, 1, marks=pytest.mark.sweep)],
)
def test_accumulation_is_exact_up_to_the_rounding_of_fp16(world: int, stage: int) -> None:
    """Six images as one micro-batch of one rank, and as three steps' worth of them on several."""
    settings = FP16
    whole = run_on_ranks(1, losses, 1, 6, settings)[0]
    parts = run_on_ranks(world, losses, stage, {1: 2, 2: 1, 3: 1}[world], settings)[0]
    wide = run_on_ranks(1, losses, 1, 6, ("training.precision=fp32", "training.optimizer.lr=1e-3"))[0]
    assert whole["type"] == parts["type"] == "torch.float16"
    assert wide["type"] == "torch.float32"
    for found in (whole, parts):
        np.testing.assert_allclose(found["losses"], wide["losses"], rtol=2e-3)
        np.testing.assert_allclose(found["norms"], wide["norms"], rtol=2e-2)
    assert whole["losses"][-1] < whole["losses"][0]


def overflowing(group: Group, stage: int) -> dict[str, Any]:
    with guards_lifted():
        engine = make_engine(group, stage, overrides=FP16)
        before = group.broadcast(plain(engine.export_state()))
        engine.engine.optimizer.loss_scaler.cur_scale = 2.0**40
        engine.engine.optimizer.loss_scaler.cur_hysteresis = 1
        result = engine.train_step(own_batches(0, engine.plan, group.rank), 0)
        after = group.broadcast(plain(engine.export_state()))
    moved = [name for name, value in before["parameters"].items() if (after["parameters"][name] != value).any()]
    return {"applied": result.applied, "norm": result.grad_norm, "moved": moved, "scaler": after["loss_scaler"]}


@pytest.mark.parametrize("stage", [1, 2])
def test_an_overflow_skips_the_update_and_halves_the_scale(stage: int) -> None:
    for found in run_on_ranks(2, overflowing, stage):
        assert found["applied"] is False
        assert found["norm"] is None
        assert found["moved"] == []
        assert found["scaler"]["cur_scale"] == 2.0**39


def steps(engine: Engine, group: Group, numbers: range) -> list[float]:
    return [engine.train_step(own_batches(step, engine.plan, group.rank), step).loss for step in numbers]


def resumed(group: Group, stage: int) -> dict[str, Any]:
    """Five steps in one go, and three and two; the scale is not that of the beginning."""
    with guards_lifted():
        whole = make_engine(group, stage, overrides=FP16)
        whole.engine.optimizer.loss_scaler.cur_scale = 2.0**9
        steps(whole, group, range(3))
        state = group.broadcast(plain(whole.export_state()))
        expected = steps(whole, group, range(3, 5))
        end = plain(whole.export_state())
        whole.close()
        part = make_engine(group, stage, overrides=FP16)
        part.import_state(from_plain(state) if group.is_main else None)
        found = steps(part, group, range(3, 5))
        return {"losses": (found, expected), "states": (plain(part.export_state()), end), "stored": state}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_goes_on_bit_by_bit(stage: int) -> None:
    found = run_on_ranks(2, resumed, stage)[0]
    assert found["losses"][0] == found["losses"][1]
    assert_equal(*found["states"])
    assert found["stored"]["loss_scaler"]["cur_scale"] == 2.0**9
    assert all(value.dtype == np.float32 for value in found["stored"]["parameters"].values())


def test_it_stays_refused_on_cpus() -> None:
    refused = run_on_ranks(1, losses_or_error)[0]
    assert "fp16 needs a GPU" in refused


def losses_or_error(group: Group) -> str:
    try:
        make_engine(group, 1, overrides=FP16)
    except Exception as error:  # noqa: BLE001 - its text is what is tested
        return str(error)
    return ""
