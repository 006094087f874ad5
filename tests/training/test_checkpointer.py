"""When checkpoints are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segformer_spark.checkpoint.names import committed, step_of
from segformer_spark.checkpoint.store import CheckpointStore
from segformer_spark.config.schema import OutputConfig
from segformer_spark.data.sampler import Position
from segformer_spark.engine.state import EngineState
from segformer_spark.errors import TrainingDiverged
from segformer_spark.training.best import BestTracker
from segformer_spark.training.checkpointer import Checkpointer
from segformer_spark.training.progress import Progress
from tests.ranks import Group, run_on_ranks
from tests.sessions import group_of_one
from tests.training.short_run import short_run


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def checkpointer(folder: Path, group: Group, clock: Clock, value: float = 1.0, **settings: Any) -> Checkpointer:
    class Engine:
        def __init__(self) -> None:
            self.group = group

        def export_state(self) -> EngineState:
            weights = {"w": torch.tensor([1.0, value])}
            return EngineState(weights, {}, {}, 1, None)

    engine: Any = Engine()
    return Checkpointer(CheckpointStore(folder, 5), engine, OutputConfig(**settings), {}, clock)


def test_steps_epochs_and_minutes(tmp_path: Path) -> None:
    with group_of_one() as group:
        clock = Clock()
        own = checkpointer(tmp_path, group, clock, checkpoint_every_steps=4, checkpoint_every_epochs=3,
                           checkpoint_every_minutes=2.0)  # fmt: skip
        due = [step for step in range(1, 19) if own.is_due(Progress(Position(step // 3, step % 3), step))]
        assert due == [4, 8, 9, 12, 16, 18], "every fourth step, and the ends of epochs 3 and 6 of three steps"
        assert not own.is_late
        clock.now += 119
        assert not own.is_late
        clock.now += 1
        assert own.is_late
        own.save(Progress(step=5), BestTracker(None, 0.0))
        assert not own.is_late
        clock.now += 10**6
        assert not checkpointer(tmp_path, group, clock).is_late


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    with group_of_one() as group:
        checkpointer(tmp_path, group, Clock()).save(Progress(step=1), BestTracker(None, 0.0))
        own = checkpointer(tmp_path, group, Clock(), value)
        with pytest.raises(
            TrainingDiverged, match=r"step 2: w \(weights\) has values that are not finite: it is not saved"
        ):
            own.save(Progress(step=2), BestTracker(None, 0.0))
    assert [step_of(path) for path in committed(tmp_path)] == [1]


def impatient(group: Group, root: str, path: str) -> list[float]:
    """One rank finds the checkpoint late at every second step, the other never."""
    looked: list[int] = []

    def late(self: Checkpointer) -> bool:
        looked.append(len(looked))
        return group.rank == 1 and len(looked) % 2 == 0

    patched: Any = Checkpointer
    patched.is_late = property(late)
    return short_run(group, root, path, ("output.keep_checkpoints=20",))


def test_ranks_whose_clocks_differ_save_at_the_same_steps(spark_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_on_ranks(2, impatient, str(spark_root), str(run))
    assert [step_of(path) for path in committed(run / "checkpoints")] == [2, 3, 4, 6, 8, 9]
