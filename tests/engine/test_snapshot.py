"""A snapshot has the values of its step, whatever is trained before it is put together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from segformer_spark.engine.engine import Engine
from segformer_spark.engine.transfer import link_moments
from segformer_spark.errors import UserError
from tests.engine.test_parity import make_engine, own_batches
from tests.ranks import Group, run_on_ranks

Values = dict[str, Any]


def by_deepspeed(engine: Engine) -> Values:
    """Masters and moments by name, as DeepSpeed's own functions give them; collective."""
    link_moments(engine.engine)
    found: Values = {"": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for live, parameter in engine.model.named_parameters():
        name = engine.names[live]
        found[""][name] = safe_get_full_fp32_param(parameter).numpy().copy()
        for key in ("exp_avg", "exp_avg_sq"):
            found[key][name] = safe_get_full_optimizer_state(parameter, key).numpy().copy()
    return found


def plain_torch(engine: Engine) -> Values:
    """The same where torch's optimizer has the parameters themselves."""
    found: Values = {"": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for live, parameter in engine.model.named_parameters():
        name = engine.names[live]
        found[""][name] = parameter.detach().numpy().copy()
        for key in ("exp_avg", "exp_avg_sq"):
            found[key][name] = engine.engine.optimizer.state[parameter][key].numpy().copy()
    return found


def train(engine: Engine, steps: range) -> None:
    for step in steps:
        engine.train_step(own_batches(step, engine.plan, engine.group.rank), step)


def meanwhile(group: Group, stage: int) -> tuple[Values, Values, Values]:
    """Expected, put together by a thread while two more steps are trained, and the next snapshot of the same memory."""
    engine = make_engine(group, stage)
    oracle = by_deepspeed if stage else plain_torch
    train(engine, range(2))
    expected = oracle(engine)
    snapshot = engine.snapshots.take()
    states: list[Any] = []
    thread = threading.Thread(target=lambda: states.append(engine.snapshots.assemble(snapshot, group.background)))
    thread.start()
    train(engine, range(2, 4))
    thread.join()
    first = {} if states[0] is None else as_plain(states[0])
    engine.snapshots.release(snapshot)
    later = oracle(engine)
    again = engine.snapshots.assemble(engine.snapshots.take(), group.control)
    if again is not None:
        compare(as_plain(again), later)
    return expected, first, {}


def as_plain(state: Any) -> Values:
    assert state.optimizer_step in (2, 4)
    masters = {name: tensor.numpy().copy() for name, tensor in state.parameters.items()}
    moments = {key: {n: t.numpy().copy() for n, t in tensors.items()} for key, tensors in state.moments.items()}
    return {"": masters, **moments}


def compare(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    for key, tensors in expected.items():
        assert found[key].keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(found[key][name], value, err_msg=f"{key} {name}")


@pytest.mark.parametrize(
    ("world_size", "stage"),
    [
        (1, 1),
        (2, 0),
        (2, 1),
        (3, 2),
        *(pytest.param(*one, marks=pytest.mark.sweep) for one in [(1, 0), (1, 2), (2, 2), (3, 0), (3, 1)]),
    ],
)
def test_values_are_those_of_the_step(world_size: int, stage: int) -> None:
    results = run_on_ranks(world_size, meanwhile, stage)
    compare(results[0][1], results[0][0])
    assert all(first == {} for _, first, _ in results[1:]), "the first rank has the state"


def not_released(group: Group) -> bool:
    engine = make_engine(group, 1)
    train(engine, range(1))
    first = engine.snapshots.take()
    before = {key: [part.clone() for part in parts] for key, parts in first.partitions.items()}
    train(engine, range(1, 2))
    engine.snapshots.take()
    return all(
        part.equal(then)
        for key, parts in first.partitions.items()
        for part, then in zip(parts, before[key], strict=True)
    )


def without_memory(group: Group) -> tuple[str, bool, bool]:
    """What assembling raises where the first rank has no memory; whether it works afterwards, and on which rank."""
    engine = make_engine(group, 2)
    train(engine, range(1))
    snapshot = engine.snapshots.take()
    plain = torch.empty

    def full(*size: Any, **options: Any) -> torch.Tensor:
        if len(size) == 1 and isinstance(size[0], torch.Size):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(*size, **options)

    with pytest.MonkeyPatch.context() as patch:
        if group.is_main:
            patch.setattr(torch, "empty", full)
        with pytest.raises(UserError) as refusal:
            engine.snapshots.assemble(snapshot, group.background)
    later = engine.export_state()
    return str(refusal.value), snapshot.is_in_use, later is not None


def test_no_rank_waits_for_a_first_one_without_memory() -> None:
    (said, in_use, has_state), (other, other_in_use, other_has_state) = run_on_ranks(2, without_memory)
    assert "the first rank has no memory for the state of step 1" in said
    assert "can't allocate memory" in said
    assert "the first rank has no memory for the state of step 1" in other
    assert (in_use, other_in_use, has_state, other_has_state) == (False, False, True, False)


def test_memory_that_is_in_use_is_not_written_again() -> None:
    assert run_on_ranks(2, not_released) == [True, True]
