"""When checkpoints are saved."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from segformer_spark.checkpoint.names import committed, step_of
from segformer_spark.checkpoint.store import CheckpointStore, read
from segformer_spark.config.schema import OutputConfig
from segformer_spark.data.sampler import Position
from segformer_spark.engine.state import EngineState
from segformer_spark.errors import TrainingDiverged, UserError
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
            self.group, self.weights, self.snapshots = group, {"w": torch.tensor([1.0, value])}, self

        def take(self) -> dict[str, torch.Tensor]:
            return {name: tensor.clone() for name, tensor in self.weights.items()}

        def assemble(self, snapshot: dict[str, torch.Tensor], process_group: Any) -> EngineState:
            return EngineState(snapshot, {}, {}, 1, None)

        def release(self, snapshot: dict[str, torch.Tensor]) -> None:
            snapshot.clear()

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


class SlowStore(CheckpointStore):
    """Writes when it is let, and fails when it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 5)
        self.go, self.full = threading.Event(), False

    def save(self, step: int, stored: Any, best_step: int | None = None) -> Path:
        assert self.go.wait(10)
        if self.full:
            raise UserError(f"step {step}: cannot be written: No space left on device")
        return super().save(step, stored, best_step)


def test_the_snapshot_has_the_values_of_its_step_and_training_goes_on(tmp_path: Path) -> None:
    """The tensors and counters change while it is written."""
    with group_of_one() as group:
        own, store = checkpointer(tmp_path, group, Clock()), SlowStore(tmp_path)
        own.store = store
        progress, best = Progress(step=3), BestTracker(None, 0.0)
        own.save(progress, best, wait=False)
        engine: Any = own.engine
        engine.weights["w"].fill_(99.0)
        progress.step, best.score = 4, 0.9
        assert committed(tmp_path) == []
        store.go.set()
        own.save(progress, best, wait=True)
    found = [(step_of(path), read(path)) for path in committed(tmp_path)]
    assert [(step, float(one.model["w"][0]), one.state["progress"]["step"]) for step, one in found] == [
        (3, 1.0, 3),
        (4, 99.0, 4),
    ]
    assert [one.state["best"]["score"] for _, one in found] == [None, 0.9]


def test_a_full_disk_is_said_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with group_of_one() as group:
        own, store = checkpointer(tmp_path, group, Clock()), SlowStore(tmp_path)
        own.store = store
        store.go.set()
        best = BestTracker(None, 0.0)
        own.save(Progress(step=1), best, wait=False)
        own.save(Progress(step=2), best, wait=False)
        own.close()  # the disk is full after that
        store.full = True
        own.save(Progress(step=3), best, wait=False)
        own.save(Progress(step=4), best, wait=False)
        store.full = False
        own.save(Progress(step=5), best, wait=True)
        assert "the checkpoint of step 3 could not be saved: training goes on" in caplog.text
        assert "No space left" in caplog.text
        assert {1, 2, 5} <= {step_of(path) for path in committed(tmp_path)}
        store.full = True
        with pytest.raises(UserError, match="step 6: cannot be written"):
            own.save(Progress(step=6), best, wait=True)
        store.full = False
        own.save(Progress(step=6), best, wait=True)
        assert step_of(committed(tmp_path)[-1]) == 6, "the same step is tried again"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    with group_of_one() as group:
        checkpointer(tmp_path, group, Clock()).save(Progress(step=1), BestTracker(None, 0.0))
        own = checkpointer(tmp_path, group, Clock(), value)
        with pytest.raises(
            TrainingDiverged, match=r"step 2: w \(weights\) has values that are not finite: it is not saved"
        ):
            own.save(Progress(step=2), BestTracker(None, 0.0))
        own.save(Progress(step=3), BestTracker(None, 0.0), wait=False)
        with pytest.raises(TrainingDiverged, match="step 3"):
            own.save(Progress(step=4), BestTracker(None, 0.0), wait=False)
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
