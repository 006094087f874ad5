"""A run that diverges goes on, if it may, from the checkpoint before with the images in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.cluster.requeue import JobId, decide
from segformer_spark.data.sampler import Position, epoch_order
from segformer_spark.engine.engine import Engine
from segformer_spark.errors import TrainingDiverged
from segformer_spark.exit_codes import ExitCode, RequeueVerdict
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.step_log import StepLog
from segformer_spark.training.reordering import Divergence, order_from, read_divergences, remember_divergence
from segformer_spark.training.replay import plan_replay, replay
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run

MAY = ("training.reorder_after_divergence=1", "output.checkpoint_every_steps=2", "output.keep_every=1")


def diverge(group: Group, root: str, path: str, overrides: tuple[str, ...], resume: str | None) -> dict[str, Any]:
    """Weights become not finite before step 6, as often as this is called."""
    original: Any = Engine.launch_step
    fed: dict[int, Any] = {}

    def broken(self: Engine, batches: Any, step: int) -> Any:
        fed[step + 1] = [file for batch in batches for file in batch.files]
        if step == 5 and resume is None:
            with torch.no_grad():
                next(self.model.encoder.parameters()).fill_(float("nan"))
        return original(self, batches, step)

    Engine.launch_step = broken  # type: ignore[method-assign]
    try:
        short_run(group, root, path, overrides, resume)
    except TrainingDiverged as error:
        return {"goes_on": error.goes_on, "step": error.step, "fed": fed}
    return {"fed": fed}


def test_the_images_come_in_another_order(spark_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = run_on_ranks(2, diverge, str(spark_root), str(path), MAY, None)
    assert [(one["goes_on"], one["step"]) for one in first] == [(True, 6)] * 2, "the same on all ranks"
    assert read_divergences(RunDirectory(path)) == [Divergence(6, 0)]
    second = run_on_ranks(2, diverge, str(spark_root), str(path), MAY, "auto")
    assert sorted(second[0]["fed"]) == list(range(5, 10)), "from the checkpoint of step 4"
    order = [second[0]["fed"][step] + second[1]["fed"][step] for step in (5, 6)]
    before = [first[0]["fed"][step] + first[1]["fed"][step] for step in (5, 6)]
    assert order != before
    log = (path / "log.txt").read_text()
    assert "a later step diverged: from step 5 on the images come in order 1" in log
    state = json.loads((path / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert state["progress"]["position"] == {"epoch": 2, "step": 2, "order": 1}, "kept by what is saved from then on"
    for step in (6, 9):
        found = run_on_ranks(2, again, str(path), step, str(tmp_path / "out"))[0]
        assert found == [], "replay knows the order, too"


def again(group: Group, run: str, step: int, output: str) -> list[int]:
    directory = RunDirectory(Path(run))
    plan = plan_replay(directory, step, json.loads(directory.params_json.read_text()))
    found = replay(plan, group, Path(output))
    assert found.recorded == tuple(StepLog(directory.steps).read()[step - 1])
    return found.differing


@pytest.mark.parametrize("allowed", [0, 1])
def test_it_ends_when_it_may_not_go_on_any_more(allowed: int, spark_root: Path, tmp_path: Path) -> None:
    path, overrides = tmp_path / "run", (f"training.reorder_after_divergence={allowed}",)
    (path / "attempts").mkdir(parents=True)
    found = run_on_ranks(1, diverge, str(spark_root), str(path), overrides, None)[0]
    assert found["goes_on"] is bool(allowed)
    assert len(read_divergences(RunDirectory(path))) == allowed


def test_orders_that_were_tried_are_not_taken_again() -> None:
    at = Position(1, 2)
    assert order_from(at, 10, []) == 0
    assert order_from(at, 10, [Divergence(12, 0)]) == 1
    assert order_from(at, 10, [Divergence(12, 0), Divergence(15, 1)]) == 2
    assert order_from(at, 20, [Divergence(12, 0)]) == 0, "a checkpoint behind it"
    assert order_from(Position(1, 2, 1), 10, [Divergence(12, 0)]) == 1, "one that was saved in the new order"
    assert not np.array_equal(epoch_order(50, 3, 1, 0), epoch_order(50, 3, 1, 1))
    assert sorted(epoch_order(50, 3, 1, 1)) == list(range(50))


def test_notes_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    remember_divergence(run, Divergence(3, 0))
    path = run.attempts / "diverged.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "or')
    assert read_divergences(run) == [Divergence(3, 0)]


def test_the_job_goes_on(tmp_path: Path) -> None:
    decision = decide(RunDirectory(tmp_path), ExitCode.DIVERGED, JobId("7", "7", 0))
    assert decision.verdict == RequeueVerdict.REQUEUED
    assert "another order" in decision.reason
