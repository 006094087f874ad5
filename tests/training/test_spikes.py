from __future__ import annotations

import random
from pathlib import Path

import pytest

from segformer_spark.engine.launched import StepResult
from segformer_spark.training.spikes import SpikeSink


def warned(losses: list[float], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    sink = SpikeSink(Path("runs/r"))
    for step, loss in enumerate(losses, start=1):
        sink.step(step, StepResult(loss, 1.0, True))
    return [record.getMessage() for record in caplog.records]


def noisy(count: int, level: float = 0.5) -> list[float]:
    draw = random.Random(1)
    return [level * draw.uniform(0.8, 1.2) for _ in range(count)]


def test_a_spike_is_named_with_the_command_once(caplog: pytest.LogCaptureFixture) -> None:
    said = warned([*noisy(40), 3.0, 3.0, *noisy(40)], caplog)
    assert len(said) == 1
    assert said[0].startswith("the loss of step 41 is 3.0000, usual are 0.")
    assert said[0].endswith("look at it with segformer-spark replay runs/r --step 41")


@pytest.mark.parametrize(
    "losses",
    [noisy(300), [5.0 / step for step in range(1, 200)], [*noisy(20), 9.0, *noisy(9)], [*noisy(40), 0.9]],
    ids=["noise", "falling", "too early", "less than twice"],
)
def test_what_is_usual_is_not_named(losses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert warned(losses, caplog) == []
