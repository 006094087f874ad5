"""A step computed again is that of the run, bit by bit; what it shows is right."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from segformer_spark.config.load import load_config
from segformer_spark.engine.engine import Engine
from segformer_spark.engine.played_ranks import PlayedRanks
from segformer_spark.errors import UserError
from segformer_spark.exit_codes import ExitCode
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.step_log import StepLog
from segformer_spark.training.replay import Plan, Replay, plan_replay, replay
from tests.ranks import Group, run_on_ranks
from tests.training.short_run import short_run
from tests.verbs import run_verb

MORE = ("training.epochs=4", "output.checkpoint_every_steps=5", "output.keep_every=1")


def planned(run: Path, step: int) -> Plan:
    directory = RunDirectory(run)
    return plan_replay(directory, step, json.loads(directory.params_json.read_text()))


def compute(group: Group, run: str, step: int, output: str, rank: int | None = None) -> Replay:
    return replay(planned(Path(run), step), group, Path(output), rank)


def replayed(run: Path, step: int, output: Path) -> Replay:
    plan = planned(run, step)
    found: Replay = run_on_ranks(plan.processes, compute, str(run), step, str(output))[0]
    return found


@pytest.fixture(scope="module")
def run(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of two ranks, with checkpoints after 5 and 10 and at the end of each epoch."""
    path = tmp_path_factory.mktemp("replayed") / "run"
    run_on_ranks(2, short_run, str(spark_root), str(path), MORE)
    return path


def test_every_step_is_noted_exactly(spark_root: Path, tmp_path: Path) -> None:
    losses = run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "run"))[0]
    assert StepLog(tmp_path / "run" / "steps.bin").read()[:, 0].tolist() == losses


def test_what_is_noted_is_equal_after_a_resume(spark_root: Path, tmp_path: Path) -> None:
    pairs = []
    for name, stop in (("whole", 10**9), ("cut", 4)):
        run_on_ranks(1, short_run, str(spark_root), str(tmp_path / name), (), None, stop)
    run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "cut"), (), "auto")
    pairs = [(tmp_path / name / "steps.bin").read_bytes() for name in ("whole", "cut")]
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 9 * 16


def test_a_step_on_two_ranks(run: Path, tmp_path: Path) -> None:
    plan = planned(run, 9)
    assert (plan.from_step, plan.processes, plan.played) == (6, 2, 1)
    assert plan.describe() == "step 9: 3 steps to compute, from the checkpoint of step 6, by 2 local ranks"
    found = replayed(run, 9, tmp_path)
    assert found.differing == []
    assert (found.loss, found.grad_norm) == found.recorded
    assert found.recorded == tuple(StepLog(run / "steps.bin").read()[8])
    norms = np.array(list(found.evidence.grad_norms.values()))
    assert np.sqrt((norms**2).sum()) == pytest.approx(found.grad_norm, rel=1e-5), "that of all layers together"
    parts = found.evidence.loss_parts
    weights = {"ce": 0.5, "dice": 0.5}
    assert sum(weights[name] * value for name, value in parts.items()) == pytest.approx(found.loss, rel=1e-6)
    assert found.evidence.first_not_finite is None
    assert [image.rank for image in found.images] == [0, 0, 1, 1]
    assert len({image.file for image in found.images}) == 4
    assert all(0 <= (image.dice or 0) <= 1 and image.loss > 0 for image in found.images)
    sheet = cv2.imread(str(tmp_path / "batch.png"))
    assert sheet is not None
    assert sheet.std() > 10


def test_the_images_of_one_rank(run: Path, tmp_path: Path) -> None:
    every = replayed(run, 1, tmp_path / "all").images
    own = run_on_ranks(2, compute, str(run), 1, str(tmp_path / "one"), 1)[0].images
    assert own == [image for image in every if image.rank == 1]


def test_another_result_is_noticed(run: Path, tmp_path: Path) -> None:
    """A note that was changed, on the way and at the end."""
    import shutil

    other = Path(shutil.copytree(run, tmp_path / "other"))
    data = bytearray((other / "steps.bin").read_bytes())
    for step in (7, 8):
        data[16 * (step - 1)] ^= 1  # the last bit of the loss
    (other / "steps.bin").write_bytes(data)
    found = replayed(other, 8, tmp_path / "out")
    assert found.differing == [7, 8]
    assert 0 < (found.relative_difference or 0) < 1e-12


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("training.global_batch_size=10", "training.batch_size=2"), marks=pytest.mark.sweep),
        ("training.global_batch_size=10", "training.batch_size=1", "training.accumulation=exact"),
        pytest.param(
            ("training.global_batch_size=10", "training.batch_size=1", "training.accumulation=mean"),
            marks=pytest.mark.sweep,
        ),
    ],
    ids=["whole", "joined", "accumulated"],
)
def test_five_ranks_are_played_by_one_process(overrides: tuple[str, ...], spark_root: Path, tmp_path: Path) -> None:
    """With dropout and stochastic depth: without each rank's own random numbers the loss is another."""
    run_on_ranks(5, short_run, str(spark_root), str(tmp_path / "run"), (*MORE, *overrides))
    plan = planned(tmp_path / "run", 4)
    assert (plan.processes, plan.played) == (1, 5)
    found = replayed(tmp_path / "run", 4, tmp_path / "out")
    assert found.relative_difference is not None
    assert found.relative_difference < 1e-5
    assert [image.rank for image in found.images if image.rank < 5] == [image.rank for image in found.images]
    assert {image.rank for image in found.images} == set(range(5))


def test_random_numbers_are_those_of_each_rank() -> None:
    def drawn() -> tuple[torch.Tensor, ...]:
        rows = torch.ones(2, 3)
        words = torch.empty(8, dtype=torch.int64).random_(-(2**63), None)
        return torch.rand(2, 1, 1), torch.nn.functional.dropout(rows, 0.5), words

    expected = []
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        expected.append(drawn())

    def together() -> tuple[torch.Tensor, ...]:
        rows = torch.ones(6, 3)
        words = torch.empty(24, dtype=torch.int64).random_(-(2**63), None)
        return torch.rand(6, 1, 1), torch.nn.functional.dropout(rows, 0.5), words

    mode = PlayedRanks(3)
    mode.seed([5, 6, 7])
    with mode:
        played = together()
    for own, one in zip(played, zip(*expected, strict=True), strict=True):
        assert torch.equal(own, torch.cat(one))


def _diverge(group: Group, root: str, path: str) -> str:
    """Weights of the third step on are not finite: a run of two steps."""
    original: Any = Engine.launch_step

    def broken(self: Engine, batches: Any, step: int) -> Any:
        if step == 2:
            with torch.no_grad():
                next(self.model.encoder.parameters()).fill_(float("nan"))
        return original(self, batches, step)

    Engine.launch_step = broken  # type: ignore[method-assign]
    try:
        short_run(group, root, path)
    except UserError as error:
        return str(error)
    return ""


def test_a_run_that_diverges_names_the_command(spark_root: Path, tmp_path: Path) -> None:
    assert "at step 3" in run_on_ranks(1, _diverge, str(spark_root), str(tmp_path / "run"))[0]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"look at it: segformer-spark replay {tmp_path / 'run'} --step 3" in log
    assert planned(tmp_path / "run", 3).step == 3


def _not_finite(group: Group, run: str, output: str) -> Replay:
    original: Any = Engine.import_state

    def broken(self: Engine, state: Any) -> None:
        original(self, state)
        with torch.no_grad():
            self.model.network.decode_head.linear_fuse.weight.fill_(float("inf"))

    Engine.import_state = broken  # type: ignore[method-assign]
    return compute(group, run, 7, output)


def test_where_a_step_stops_being_finite(run: Path, tmp_path: Path) -> None:
    found = run_on_ranks(2, _not_finite, str(run), str(tmp_path))[0]
    assert "at step 7" in (found.diverged or "")
    assert (found.evidence.first_not_finite or "").startswith("network.decode_head")
    assert len(found.images) == 4


def test_steps_that_are_not_there(run: Path) -> None:
    with pytest.raises(UserError, match="there is no step 14, the run has done 12"):
        planned(run, 14)


def test_data_that_are_others_now(run: Path, tmp_path: Path, spark_root: Path, own_spark_root: Path) -> None:
    import shutil

    other = Path(shutil.copytree(run, tmp_path / "other"))
    resolved = load_config(other / "config.yaml", overrides=[f"data.root={own_spark_root}"])
    from segformer_spark.run.directory import dump_config

    (other / "config.yaml").write_text(dump_config(resolved))
    image = next(own_spark_root.rglob("train/*_img.jpg"))
    picture = cv2.imread(str(image))
    cv2.imwrite(str(image), 255 - picture)
    with pytest.raises(AssertionError, match="other images or masks"):
        replayed(other, 8, tmp_path / "out")


def test_the_verb(run: Path, tmp_path: Path) -> None:
    done = run_verb("replay", str(run), "--step", "8", "--output", str(tmp_path / "out"))
    printed = done.stdout
    assert done.returncode == ExitCode.GOOD, done
    assert "step 8: 2 steps to compute, from the checkpoint of step 6, by 2 local ranks" in printed
    assert "equal, as are all steps on the way" in printed
    record = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert record["loss"] == record["recorded"][0]
    assert record["steps_that_differ"] == []
    assert len(record["images"]) == 4


@pytest.mark.sweep
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_random_steps_of_every_stage(world: int, spark_root: Path, tmp_path: Path) -> None:
    """With the other worlds one hundred and eight: every one equal."""
    rng, count = random.Random(world), 0
    batch = {1: 4, 2: 2, 3: 1, 4: 1}[world]
    for stage in (0, 1, 2):
        path = tmp_path / f"zero{stage}"
        settings = (f"deepspeed.zero_stage={stage}", "training.epochs=12", "output.keep_every=7",
                    f"training.global_batch_size={batch * world}", f"training.batch_size={batch}")  # fmt: skip
        run_on_ranks(world, short_run, str(spark_root), str(path), settings)
        steps = len(StepLog(path / "steps.bin").read())
        for step in rng.sample(range(1, steps + 1), 9):
            found = replayed(path, step, tmp_path / "out")
            assert found.differing == []
            assert (found.loss, found.grad_norm) == found.recorded
            count += 1
    assert count == 27


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.sweep) for step in (5, 10)), 7])
def test_a_schedule_that_follows_the_validations(step: int, spark_root: Path, tmp_path: Path) -> None:
    """Checkpoints are saved before the validation of their step, which may lower the learning rate behind them."""
    settings = ("training.epochs=4", "output.keep_every=1", "training.scheduler.type=plateau",
                "training.scheduler.plateau_patience=1", "training.scheduler.warmup_epochs=0",
                "training.optimizer.lr=1e-6")  # fmt: skip
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(path), settings)
    found = replayed(path, step, tmp_path / "out")
    assert found.differing == []
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lrs = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    assert found.lr == lrs[step]
    assert lrs[10] < lrs[1], "it was lowered"


@pytest.mark.parametrize("step", [pytest.param(8, marks=pytest.mark.sweep), 11])
def test_steps_before_and_after_an_extension(step: int, spark_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(path), ("output.keep_every=2",))
    run_on_ranks(1, short_run, str(spark_root), str(path), ("output.keep_every=2", "training.epochs=5"), "auto")
    found = replayed(path, step, tmp_path / "out")
    assert found.differing == []
    assert found.recorded is not None
