"""A run that was cut off resumes as if it had not been."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from segformer_spark.engine.engine import Engine
from segformer_spark.models.weights import check_weights_folder
from segformer_spark.run.metrics_log import MetricsLog
from tests.ranks import Group, run_on_ranks, start_on_ranks
from tests.training.short_run import SHORT, short_run
from tests.verbs import start_verb
from tests.waiting import wait_for

STILL = ("model.drop_path=0.0", "model.dropout=0.0")


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "final" / "model.safetensors")


def losses_in(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def validations_in(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["miou"]) for row in rows if row["kind"] == "validation"]


def assert_same_run(left: Path, right: Path) -> None:
    assert losses_in(left) == losses_in(right)
    assert validations_in(left) == validations_in(right)
    for name, value in weights(left).items():
        np.testing.assert_array_equal(value, weights(right)[name], err_msg=name)


def test_a_job_whose_time_is_over_soon_saves_and_resumes_later(
    spark_root: Path, trained_run: Path, tmp_path: Path
) -> None:
    """One rank sees the end first; both stop."""
    path = tmp_path / "run"
    assert run_on_ranks(2, ends_for_rank_1, str(spark_root), str(path)) == [[], []]
    record = json.loads((path / "training_params.json").read_text())
    assert (record["status"], record["steps"]) == ("stopped on request", 0)
    run_on_ranks(1, short_run, str(spark_root), str(path), (), "auto")
    assert_same_run(path, trained_run)


def test_every_step_counts_once_in_the_training_loss(spark_root: Path, tmp_path: Path) -> None:
    """Log lines every 4 steps, epochs of 3, a stop in mid-interval: the sums of the interval are in the checkpoint."""
    settings = (*STILL, "output.log_every_steps=4")
    for name, stop_at in (("whole", 10**9), ("parts", 5)):
        run_on_ranks(1, short_run, str(spark_root), str(tmp_path / name), settings, None, stop_at)
    run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "parts"), settings, "auto")
    step_losses = run_on_ranks(1, short_run, str(spark_root), str(tmp_path / "again"), STILL)[0]
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    train = [(row["step"], row["num_steps"]) for row in rows if row["kind"] == "train"]
    assert train == [(3, 3), (4, 1), (6, 2), (8, 2), (9, 1)], "one more before each validation"
    assert losses_in(tmp_path / "parts") == losses_in(tmp_path / "whole")
    with (tmp_path / "parts" / "history.csv").open() as stream:
        history = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert history == pytest.approx([sum(step_losses[e : e + 3]) / 3 for e in (0, 3, 6)], rel=1e-12)


def mapped_files(group: Group, root: str, path: str) -> list[str]:
    """Files of checkpoints that are mapped into memory when a resumed run takes its first step."""
    found: list[str] = []
    original = Engine.launch_step

    def looking(self: Engine, batches: list[Any], step: int) -> Any:
        found.extend(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if path in line)
        return original(self, batches, step)

    patched: Any = Engine
    patched.launch_step = looking
    short_run(group, root, path, (), "auto", 1)
    return found


def test_a_resumed_run_lets_go_of_the_checkpoints_files(spark_root: Path, tmp_path: Path) -> None:
    """A network file system keeps files that are deleted while they are mapped."""
    path = str(tmp_path / "run")
    run_on_ranks(1, short_run, str(spark_root), path, (), None, 2)
    assert run_on_ranks(1, mapped_files, str(spark_root), path) == [[]]


def test_the_validation_before_the_first_step_is_not_done_again(spark_root: Path, tmp_path: Path) -> None:
    path, settings = tmp_path / "run", ("training.validation.at_start=true", "training.max_steps=1")
    settings = (*settings, "training.scheduler.warmup_steps=0")
    run_on_ranks(1, stops_at_once, str(spark_root), str(path), settings)
    run_on_ranks(1, short_run, str(spark_root), str(path), settings, "auto")
    assert [step for step, _ in validations_in(path)] == [0, 1]


def stops_at_once(group: Group, root: str, path: str, settings: tuple[str, ...]) -> list[float]:
    return short_run(group, root, path, settings, deadline=time.time())


def ends_for_rank_1(group: Group, root: str, path: str) -> list[float]:
    return short_run(group, root, path, deadline=time.time() if group.rank == 1 else None)


@pytest.mark.parametrize("stop_at", [2, *(pytest.param(step, marks=pytest.mark.sweep) for step in (3, 5))])
def test_stopped_on_request_and_resumed_is_bit_equal(
    spark_root: Path, trained_run: Path, tmp_path: Path, stop_at: int
) -> None:
    """Dropout, stochastic depth and augmentation are on. Step 3 ends an epoch; the resumed run validates it."""
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(path), (), None, stop_at)
    assert not (path / "final").exists()
    assert json.loads((path / "training_params.json").read_text())["status"] == "stopped on request"
    run_on_ranks(1, short_run, str(spark_root), str(path), ("deepspeed.zero_stage=2",), "auto")
    assert_same_run(path, trained_run)
    record = json.loads((path / "training_params.json").read_text())
    assert record["status"] == "completed"
    assert [(a["from_step"], a["to_step"], a["status"]) for a in record["attempts"]] == [
        (0, stop_at, "stopped on request"),
        (stop_at, 9, "completed"),
    ]


@pytest.mark.parametrize("stop_at", [3, pytest.param(7, marks=pytest.mark.sweep)])
def test_momentum_and_a_lowered_rate_go_on_bit_for_bit(spark_root: Path, tmp_path: Path, stop_at: int) -> None:
    """At step 3 the validation that lowers the rate comes after the checkpoint, and is done again."""
    settings = (
        *("training.optimizer.type=sgd", "training.optimizer.lr=1e-6", "training.scheduler.warmup_epochs=0"),
        *("training.scheduler.type=plateau", "training.scheduler.plateau_patience=1", "training.epochs=4"),
        *("training.validation.every_steps=1", "training.selection_metric=miou"),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_on_ranks(1, short_run, str(spark_root), str(whole), settings)
    run_on_ranks(1, short_run, str(spark_root), str(cut), settings, None, stop_at)
    run_on_ranks(1, short_run, str(spark_root), str(cut), (*settings, "deepspeed.zero_stage=2"), "auto")
    assert_same_run(cut, whole)
    rates = [row["lr"] for row in MetricsLog(whole / "metrics.jsonl").rows() if row["kind"] == "train"]
    assert rates[-1] < 1e-6 / 50, "lowered twice at least"


def test_other_ranks_continue_to_rounding(spark_root: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = run_on_ranks(2, short_run, str(spark_root), str(whole), STILL)[0]
    first = run_on_ranks(2, short_run, str(spark_root), str(cut), STILL, None, 4)[0]
    rest = run_on_ranks(1, short_run, str(spark_root), str(cut), (*STILL, "deepspeed.zero_stage=0"), "auto")[0]
    assert first == expected[:4]
    np.testing.assert_allclose(rest, expected[4:], rtol=0, atol=1e-5)


def test_resume_finds_nothing_and_starts(spark_root: Path, trained_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(path), (), "auto")
    assert_same_run(path, trained_run)


def command(root: Path, path: Path, *extra: str) -> list[str]:
    settings = [*SHORT, "training.batch_size=2", "output.checkpoint_every_steps=2", f"data.root={root}"]
    settings += [f"output.save_path={path}", "data.num_workers=1"]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "segformer_spark",
        "train",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, *launcher, *arguments, *extra]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if f" step {step}/" in line:
            return seen
    raise AssertionError(f"step {step} was never reached:\n{seen}")


def test_killed_in_mid_epoch_and_resumed_is_bit_equal(spark_root: Path, tmp_path: Path) -> None:
    """Two ranks with a loader process each."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ("output.checkpoint_every_steps=2", "data.num_workers=1")
    run_on_ranks(2, short_run, str(spark_root), str(whole), settings)
    ranks = start_on_ranks(2, short_run, str(spark_root), str(cut), (*settings, "training.epochs=3"))
    wait_for(lambda: (cut / "metrics.jsonl").exists() and len(losses_in(cut)) >= 5, "five steps")
    ranks.kill()
    assert (cut / "checkpoints" / "step-00000004" / "manifest.json").is_file()
    assert not (cut / "final").exists()
    run_on_ranks(2, short_run, str(spark_root), str(cut), settings, "auto")
    assert_same_run(cut, whole)


def test_ctrl_c_saves_and_leaves(spark_root: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "run", tmp_path / "log"
    arguments = command(spark_root, path, "--set", "training.epochs=200")
    process = start_verb(*arguments[arguments.index("train") :], out=log, err=tmp_path / "err")
    wait_for(lambda: log.exists() and "step 3/" in log.read_text(), "three steps")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: loader workers get it too
    process.join(60)
    rest = log.read_text() + (tmp_path / "err").read_text()
    assert process.exitcode == 85, rest
    assert "stop requested (SIGINT): saving a checkpoint, then leaving" in rest
    assert "--resume auto" in rest
    newest = sorted((path / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "state.json").read_text())["progress"]["step"] == losses_in(path)[-1][0]


@pytest.mark.sweep
def test_sigterm_to_torchrun_saves_on_all_ranks(spark_root: Path, tmp_path: Path) -> None:
    """torchrun passes it on, waits for its workers, and reports a status of its own."""
    path = tmp_path / "run"
    process = start(command(spark_root, path, "--set", "training.epochs=200"))
    wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stop requested (SIGTERM): saving a checkpoint, then leaving" in rest
    newest = sorted((path / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "state.json").read_text())["progress"]["step"] == losses_in(path)[-1][0]


def test_ranks_whose_torchrun_is_killed_save_and_leave(spark_root: Path, tmp_path: Path) -> None:
    """Within seconds, and without pages of frames; who watches them is told why."""
    path = tmp_path / "run"
    process = start(command(spark_root, path, "--set", "training.epochs=200"))
    wait_for_step(process, 3)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    rest, _ = process.communicate(timeout=10)
    assert "SIGTERM: the process that started this one is gone" in rest
    assert "Traceback" not in rest
    newest = sorted((path / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "state.json").read_text())["progress"]["step"] == losses_in(path)[-1][0]


@pytest.mark.parametrize("damage", [pytest.param("missing", marks=pytest.mark.sweep), "flipped"])
def test_a_best_model_that_is_lost_is_said_and_chosen_anew(spark_root: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(run), (), None, 4)
    weights = run / "best" / "model.safetensors"
    if damage == "missing":
        shutil.rmtree(run / "best")
    else:
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    run_on_ranks(1, short_run, str(spark_root), str(run), (), "auto")
    assert "the best model, of step 3, is lost (" in (run / "log.txt").read_text()
    check_weights_folder(run / "best")


def test_record_and_configuration_that_are_lost_are_said_and_written_anew(spark_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_on_ranks(1, short_run, str(spark_root), str(run), (), None, 4)
    before = (run / "config.yaml").read_text()
    (run / "config.yaml").unlink()
    (run / "training_params.json").write_text('{"attempts": 3}')
    run_on_ranks(1, short_run, str(spark_root), str(run), (), "auto")
    assert (run / "config.yaml").read_text() == before
    assert "the record of the earlier attempts is lost, and begins anew: 'started'" in (run / "log.txt").read_text()
    record = json.loads((run / "training_params.json").read_text())
    assert [attempt["from_step"] for attempt in record["attempts"]] == [4]
