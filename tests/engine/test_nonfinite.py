"""A loss or a gradient that is not finite changes nothing, and the message says whose it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from segformer_spark.bench.roofline.trace import tracing
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import TrainingDiverged
from tests.engine.test_parity import make_engine, own_batches
from tests.ranks import Group, run_on_ranks


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """All of it on the first rank; weights, buffers and averages on the others."""
    state = engine.export_state()
    if state is None:
        averages = {} if engine.average is None else engine.average.values
        live = {**engine.model.state_dict(), **{f"average/{name}": value for name, value in averages.items()}}
        return {name: value.clone() for name, value in live.items()}
    moments = {f"{kind}/{name}": value for kind, own in state.moments.items() for name, value in own.items()}
    average = {f"average/{name}": value for name, value in (state.average or {}).items()}
    return {name: value.clone() for name, value in {**state.parameters, **state.buffers, **moments, **average}.items()}


def spoil_logits(engine: Engine) -> None:
    """Of the second image of a batch."""

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple | list) else output
        first = first.clone()
        first[1] = float("inf")
        return [first, *output[1:]] if isinstance(output, tuple | list) else first

    engine.model.register_forward_hook(spoil)


def spoil_gradient(engine: Engine) -> None:
    next(engine.model.head_parameters()).register_hook(lambda gradient: gradient * float("inf"))


def diverge(group: Group, stage: int, spoil: Callable[[Engine], None], overrides: tuple[str, ...]) -> tuple[str, int]:
    """The message of a second step that the last rank spoils, and how many tensors it changed."""
    micro = 3 if group.world_size == 1 else None
    engine = make_engine(group, stage, micro=micro, overrides=("training.ema.decay=0.9", *overrides))
    files = tuple(f"images/{group.rank}-{number}.jpg" for number in range(3))
    first, second = (
        [replace(batch, files=files) for batch in own_batches(step, engine.plan, group.rank)] for step in (0, 1)
    )
    engine.train_step(first, 0)
    before = state_of(engine)
    if group.rank == group.world_size - 1:
        spoil(engine)
    with pytest.raises(TrainingDiverged) as error:
        engine.train_step(second, 1)
    assert error.value.shared
    after = state_of(engine)
    assert any("running_mean" in name for name in before)
    assert any("exp_avg/" in name for name in before) == group.is_main
    assert any("average/" in name for name in before)
    return str(error.value), sum(not torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize(
    ("precision", "stage"),
    [
        ("fp32", 0),
        ("bf16", 1),
        ("fp32", 2),
        *(pytest.param(*one, marks=pytest.mark.sweep) for one in [("bf16", 0), ("fp32", 1), ("bf16", 2)]),
    ],
)
@pytest.mark.parametrize("spoil", [spoil_logits, spoil_gradient])
def test_nothing_of_the_step_stays_on_any_rank(stage: int, precision: str, spoil: Callable[[Engine], None]) -> None:
    for message, changed in run_on_ranks(2, diverge, stage, spoil, (f"training.precision={precision}",)):
        assert changed == 0
        assert "at step 2; no update was applied. " in message
        if spoil is spoil_logits:
            assert "Rank 1's logits are not finite for images/1-1.jpg. Resume" in message
        else:
            assert "The logits are finite on every rank" in message


def launch_on(group: Group, stage: int) -> tuple[str, int]:
    """The message of a spoiled step, read when a good one is queued after it, and how many tensors both changed."""
    engine = make_engine(group, stage, overrides=("training.ema.decay=0.9",))
    batches = [own_batches(step, engine.plan, group.rank) for step in range(3)]
    engine.train_step(batches[0], 0)
    before = state_of(engine)
    remove = engine.model.register_forward_hook(
        lambda module, inputs, output: [logits * float("nan") for logits in output]
    )
    spoiled = engine.launch_step(batches[1], 1)
    remove.remove()
    engine.launch_step(batches[2], 2)
    after = state_of(engine)
    with pytest.raises(TrainingDiverged) as error:
        spoiled.result()
    return str(error.value), sum(not torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_nor_does_a_step_that_was_queued_before_anyone_knew(stage: int) -> None:
    for message, changed in run_on_ranks(2, launch_on, stage):
        assert changed == 0
        assert "the loss is nan at step 2" in message


def host_reads(group: Group, stage: int) -> dict[str, int]:
    """Where a step waits for the device, once all is built."""
    engine = make_engine(group, stage, overrides=("hardware.kernels=plain", "training.ema.decay=0.9"))
    batch = own_batches(0, engine.plan, group.rank)
    for step in range(2):
        engine.train_step(batch, step)
    with tracing() as trace:
        engine.launch_step(batch, 2)
    return dict(trace.host_syncs)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_asks_nothing_of_the_host(stage: int) -> None:
    """Clipping, the moving average and the refusal of what is not finite included."""
    assert run_on_ranks(2, host_reads, stage) == [{}, {}]


@pytest.mark.parametrize("accumulation", ["exact", "mean"])
def test_the_second_micro_batch(accumulation: str) -> None:
    settings = (f"training.accumulation={accumulation}",)
    [(message, changed)] = run_on_ranks(1, diverge, 1, spoil_gradient, settings)
    assert changed == 0
    assert "no update was applied" in message


def poisoned(group: Group) -> str:
    engine = make_engine(group, 1)
    # Where the optimizer has them, too: under ZeRO a step copies them from there, even one that changes nothing.
    state = engine.export_state()
    if state is not None:
        state.parameters["decode_head.classifier.bias"].fill_(float("nan"))
    engine.import_state(state)
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 5") as error:
        engine.train_step(own_batches(0, engine.plan, group.rank), 4)
    return str(error.value)


def test_weights_that_are_no_numbers_are_on_all_ranks() -> None:
    for message in run_on_ranks(2, poisoned):
        assert "not finite on any rank, on rank 0 for image 0 of the batch, image 1 of the batch" in message


def lowest_loss_scale(group: Group) -> str:
    """DeepSpeed's own exception; fp16 itself needs a GPU."""
    engine = make_engine(group, 1)
    engine.precision = "fp16"
    text = "Current loss scale already at minimum - cannot decrease scale anymore. Exiting run."

    def overflow() -> None:
        raise Exception(text)

    engine.engine.step = overflow
    with pytest.raises(TrainingDiverged) as error:
        engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    text = "another fault"
    with pytest.raises(Exception, match="another fault"):
        engine.train_step(own_batches(0, engine.plan, group.rank), 0)
    return str(error.value)


def test_the_lowest_loss_scale_is_an_error_for_the_user() -> None:
    assert "under fp16 at the lowest loss scale. Use bf16 or fp32" in run_on_ranks(1, lowest_loss_scale)[0]
