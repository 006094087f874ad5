"""The loop from parts, without a run directory: what happens in which order, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from segformer_spark.config.load import load_config
from segformer_spark.config.schema import SchedulerConfig
from segformer_spark.data.sampler import Position
from segformer_spark.engine.launched import FinishedStep, StepResult
from segformer_spark.errors import DataError, TrainingDiverged
from segformer_spark.run.outcome import Outcome
from segformer_spark.training.best import BestTracker
from segformer_spark.training.loop import Loop
from segformer_spark.training.progress import Progress
from segformer_spark.training.schedule import Schedule
from segformer_spark.training.stop import StopRequest
from tests.sessions import group_of_one

STEPS_PER_EPOCH, EPOCHS = 3, 2


@pytest.fixture(params=[False, True], ids=["", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the ranks agree on a step while the one before is launched."""
    monkeypatch.setattr(Loop, "looks_ahead", request.param)
    return bool(request.param)


class Parts:
    """Engine, loader, validation, checkpointer and reporter in one, which write down what they are asked."""

    def __init__(self, group: Any, scores: list[float], patience: int | None = None) -> None:
        self.events: list[str] = []
        self.group, self.scores = group, iter(scores)
        self.plan = SimpleNamespace(accumulation_steps=2)
        self.sampler = SimpleNamespace(steps_per_epoch=STEPS_PER_EPOCH, start_at=self.start_at)
        self.best = BestTracker(patience, 0.0)
        self.failure, self.seconds, self.saved_step = None, 0.0, None
        self.applied, self.damaged_at = True, -1
        self.stop_after, self.stop = -1, StopRequest()

    def start_at(self, position: Position) -> None:
        self.first = position.step

    def __iter__(self) -> Iterator[int]:
        for number in range(2 * self.first, 2 * STEPS_PER_EPOCH):
            if number == self.damaged_at:
                raise DataError("image 5: the file is truncated")
            yield number

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def lrs(self) -> dict[str, float]:
        return {"": self.lr}

    def launch_step(self, batches: list[int], step: int) -> FinishedStep:
        self.events.append(f"step {step} of {batches}")
        if step == self.stop_after:
            self.stop.reason = "test"
        return FinishedStep(StepResult(loss=1.0, grad_norm=1.0, applied=self.applied))

    def step(self, *_: Any) -> None: ...

    def end_interval(self) -> None: ...

    def flush(self) -> None: ...

    def exclude(self, seconds: float) -> None: ...


class Validating:
    def __init__(self, parts: Parts) -> None:
        self.parts, self.best = parts, parts.best

    def rehearse(self) -> None: ...

    def is_due(self, progress: Progress) -> bool:
        return progress.step > 0 and progress.position.step == 0 and progress.validated_step != progress.step

    def run(self, progress: Progress) -> None:
        progress.validated_step = progress.step
        self.best.update(next(self.parts.scores), progress.step)
        self.parts.events.append(f"validate {progress.step}")


class Saving:
    is_late = False

    seconds = 0.0

    def __init__(self, parts: Parts) -> None:
        self.parts, self.saved = parts, -1

    def is_due(self, progress: Progress) -> bool:
        return progress.position.step == 0

    def save(self, progress: Progress, best: BestTracker, *, wait: bool = False) -> float:
        if self.saved != progress.step:
            self.saved = progress.step
            self.parts.events.append(f"save {progress.step}")
        return 0.0


def loop_of(parts: Parts, progress: Progress | None = None) -> Loop:
    given: Any = parts
    validation: Any = Validating(parts)
    checkpointer: Any = Saving(parts)
    return Loop(
        engine=given,
        loader=given,
        schedule=Schedule(SchedulerConfig(type="constant"), 1e-3, 0, STEPS_PER_EPOCH * EPOCHS),
        validation=validation,
        checkpointer=checkpointer,
        reporter=given,
        config=load_config(overrides=["training.max_skipped_steps=2"]).config.training,
        progress=progress or Progress(),
        stop=parts.stop,
    )


@pytest.mark.usefixtures("ahead")
def test_a_checkpoint_comes_before_the_validation_of_its_step() -> None:
    with group_of_one() as group:
        parts = Parts(group, [0.1, 0.2])
        assert loop_of(parts).run() is Outcome.COMPLETED
    steps = [f"step {n} of [{2 * (n % 3)}, {2 * (n % 3) + 1}]" for n in range(6)]
    assert parts.events == [*steps[:3], "save 3", "validate 3", *steps[3:], "save 6", "validate 6"]


def test_a_stop_saves_after_the_step_and_the_rest_follows_when_resumed(ahead: bool) -> None:
    with group_of_one() as group:
        parts = Parts(group, [0.1, 0.2])
        parts.stop_after = 0 if ahead else 1  # what was agreed on is done
        progress = Progress()
        assert loop_of(parts, progress).run() is Outcome.STOPPED
        assert parts.events[-1] == "save 2"
        assert (progress.step, progress.position) == (2, Position(0, 2))
        rest = Parts(group, [0.1, 0.2])
        assert loop_of(rest, progress).run() is Outcome.COMPLETED
    assert rest.events[:3] == ["step 2 of [4, 5]", "save 3", "validate 3"]


@pytest.mark.usefixtures("ahead")
def test_the_end_of_the_jobs_time_is_a_stop() -> None:
    with group_of_one() as group:
        parts = Parts(group, [])
        parts.stop.deadline = time.time() + 20
        assert loop_of(parts).run() is Outcome.STOPPED
    assert parts.events == ["save 0"]


@pytest.mark.usefixtures("ahead")
def test_a_run_that_gets_no_better_ends_early() -> None:
    with group_of_one() as group:
        parts = Parts(group, [0.3, 0.2], patience=1)
        loop = loop_of(parts)
        loop.schedule = Schedule(SchedulerConfig(type="constant"), 1e-3, 0, 9)
        assert loop.run() is Outcome.EARLY_STOPPED
    assert parts.events[-2:] == ["save 6", "validate 6"]


def test_skipped_updates_end_the_run() -> None:
    with group_of_one() as group:
        parts = Parts(group, [])
        parts.applied = False
        with pytest.raises(TrainingDiverged, match="2 updates in a row were skipped for overflow, up to step 2"):
            loop_of(parts).run()
    assert len(parts.events) == 2


@pytest.mark.usefixtures("ahead")
def test_a_damaged_image_is_raised_before_the_step_that_needs_it() -> None:
    with group_of_one() as group:
        parts = Parts(group, [])
        parts.damaged_at = 3
        with pytest.raises(DataError, match="image 5: the file is truncated"):
            loop_of(parts).run()
    assert parts.events == ["step 0 of [0, 1]"]
