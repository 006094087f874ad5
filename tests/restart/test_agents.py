"""Agents as processes, with real trainings: whatever ends a rank, the run goes on in place to the same weights."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from segformer_spark.exit_codes import ExitCode
from segformer_spark.run.metrics_log import MetricsLog
from tests.ranks import run_on_ranks
from tests.restart.agents import RANK_SETTINGS, start_agents
from tests.training.short_run import SHORT, short_run
from tests.waiting import wait_for

MORE = ("training.epochs=8", *RANK_SETTINGS)
NUM_STEPS = 24


@dataclass
class Agents:
    """The tasks of one job step, each on a node of its own."""

    processes: Sequence[Any]
    run: Path
    log: Path

    def rank_of(self, task: int) -> psutil.Process:
        """The process of the rank that an agent started."""
        agent = psutil.Process(self.processes[task].pid)
        # The first agent forks the coordinator before its first rank.
        return agent.children()[-1]

    def until_step(self, step: int) -> None:
        try:
            wait_for(lambda: self.steps() >= step, f"step {step}", 0.01)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the log is\n{self.text()}") from None

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return sum(row["kind"] == "train" for row in MetricsLog(path).rows()) if path.is_file() else 0

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def statuses(self) -> list[int]:
        for process in self.processes:
            process.join(300)
        return [process.exitcode for process in self.processes]

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "training_params.json").read_text()))


@pytest.fixture
def start(spark_root: Path, tmp_path: Path) -> Callable[..., Agents]:
    """Start the agents of a job step."""

    def begin(tasks: int, *overrides: str, spares: int = 0) -> Agents:
        run = tmp_path / "run"
        batch = f"training.batch_size={4 // (tasks - spares)}"
        settings = (*SHORT, *MORE, batch, f"data.root={spark_root}", f"output.save_path={run}", *overrides)
        return Agents(start_agents(tmp_path, tasks, settings, spares=spares), run, tmp_path / "log")

    return begin


@pytest.fixture(scope="module")
def undisturbed(spark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks without a fault."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_on_ranks(2, short_run, str(spark_root), str(run), MORE)
    return run


def check(agents: Agents, undisturbed: Path, *, restarts: int) -> dict[str, Any]:
    """The run is complete and equal; its record."""
    assert set(agents.statuses()) == {0}, agents.text()
    for part in ("final", "best"):
        weights, expected = (load_file(run / part / "model.safetensors") for run in (agents.run, undisturbed))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    losses, expected_losses = ([row.get("loss") for row in MetricsLog(run / "metrics.jsonl").rows()]
                               for run in (agents.run, undisturbed))  # fmt: skip
    assert losses == expected_losses
    record = agents.record
    in_place = [a["restarted_in_place"] for a in record["attempts"] if "restarted_in_place" in a]
    assert len(in_place) == restarts
    assert all(0 < one["seconds_to_first_step"] < 60 for one in in_place)
    assert 0 < record["goodput"]["goodput"] < 1
    useful, wall = record["goodput"]["useful_step_seconds"], record["goodput"]["wall_seconds"]
    assert record["goodput"]["goodput"] == pytest.approx(useful / wall, abs=0.01)
    return record


def test_killed_ranks_start_again_in_place(start: Callable[..., Agents], undisturbed: Path) -> None:
    """The first rank, which writes, and the other one."""
    agents = start(2)
    for task, step in ((1, 5), (0, 13)):
        agents.until_step(step)
        agents.rank_of(task).kill()
        wait_for(lambda own=task: f"rank {own} on n{own} was ended by SIGKILL: restarting" in agents.text(), "restart")
    record = check(agents, undisturbed, restarts=2)
    assert "back at work" in agents.text()
    assert "Traceback" not in agents.text(), "the rank that was left says one line"
    first, second, third = [json.loads(p.read_text()) for p in sorted((agents.run / "attempts").glob("0*.json"))]
    assert (first["generation"], second["generation"], third["generation"]) == (0, 1, 2)
    assert third["outcome"] == "completed"
    assert len(record["attempts"]) == 3


def test_a_spare_takes_the_place_of_a_lost_node(start: Callable[..., Agents], undisturbed: Path) -> None:
    agents = start(3, spares=1)
    agents.until_step(5)
    agents.processes[1].kill()
    wait_for(lambda: agents.processes[1].exitcode is not None, "its end")
    wait_for(lambda: "n1 is lost (its connection closed): restarting in place, number 1" in agents.text(), "restart")
    agents.processes = [agents.processes[0], agents.processes[2]]
    check(agents, undisturbed, restarts=1)


def test_a_stopped_rank_is_lost_and_the_others_do_not_wait_for_it(
    start: Callable[..., Agents], undisturbed: Path
) -> None:
    agents = start(2, "hardware.peer_timeout=3")
    agents.until_step(5)
    agents.rank_of(1).send_signal(signal.SIGSTOP)
    wait_for(lambda: "no heartbeat from rank 1 on" in agents.text(), "the watch")
    check(agents, undisturbed, restarts=1)


def test_a_rank_whose_loader_hangs_shows_where_and_all_start_again(
    start: Callable[..., Agents], undisturbed: Path
) -> None:
    agents = start(2, "data.num_workers=1", "hardware.hang_timeout=1")
    agents.until_step(13)
    loaders = agents.rank_of(1).children()
    for loader in loaders:
        loader.send_signal(signal.SIGSTOP)
    wait_for(lambda: "restarting in place" in agents.text(), "the watch")
    for loader in loaders:
        assert not loader.is_running() or loader.status() == psutil.STATUS_ZOMBIE, "killed with its rank"
    said = agents.text()
    assert "[rank 1 on" in said
    assert "loading the images of step" in said
    assert "in _agree" in said, "the stack of the thread that waits"
    check(agents, undisturbed, restarts=1)


def test_an_agent_whose_coordinator_stands_still_does_not_wait_for_it(start: Callable[..., Agents]) -> None:
    """A network that is cut closes no connection: on the other side of it nobody ends these processes."""
    agents = start(2, "training.epochs=200", "hardware.peer_timeout=3")
    agents.until_step(3)
    first = psutil.Process(agents.processes[0].pid)
    stopped = [first, *first.children(recursive=True)]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    agents.processes[1].join(120)
    assert agents.processes[1].exitcode == ExitCode.PEER_LOST
    for process in stopped:
        process.kill()


def test_a_signal_to_an_agent_stops_all_ranks_with_their_state_saved(start: Callable[..., Agents]) -> None:
    agents = start(2, "training.epochs=200")
    agents.until_step(5)
    os.kill(agents.processes[1].pid, signal.SIGUSR1)
    assert agents.statuses() == [ExitCode.STOPPED] * 2, agents.text()
    step = agents.record["attempts"][-1]["to_step"]
    assert (agents.run / "checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()


def test_a_mistake_is_not_tried_again(start: Callable[..., Agents]) -> None:
    agents = start(2, "data.val_split=none")
    assert agents.statuses() == [ExitCode.USER_ERROR] * 2
    assert "restarting in place, number" not in agents.text()
    assert "not restarted in place: the message above says what to fix" in agents.text()


def test_nothing_of_a_rank_outlives_its_agent(start: Callable[..., Agents]) -> None:
    agents = start(2, "training.epochs=200", "data.num_workers=1")
    agents.until_step(3)
    processes = [p for a in agents.processes for p in psutil.Process(a.pid).children(recursive=True)]
    assert len(processes) >= 5
    for agent in agents.processes:
        agent.kill()
    deadline = time.monotonic() + 20  # loader processes look for their parent every few seconds
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)
