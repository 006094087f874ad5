"""Random faults in a training of two ranks until it is done; its results must be those of the same run without any.

    make soak              60 faults, about a quarter of an hour
    make soak SOAK=200
    python -m tests.soak --faults 15 --seconds 60    a fault a minute, for the goodput

The ranks have agents, as under Slurm: what a job survives in place it does, after the rest the job begins again, as a
requeue has it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from segformer_spark.data.demo.write import write_demo_set
from segformer_spark.run.metrics_log import MetricsLog
from tests.restart.agents import start_agents
from tests.training.short_run import SHORT

_TIMES = {"images_per_s", "images_per_s_per_device", "memory_gib", "seconds"}
_MOST_SECONDS = 180.0
"""Without a step for so long the run is taken for lost."""


@dataclass
class Soak:
    """One run under faults."""

    root: Path
    folder: Path
    steps: int
    seed: int
    restart: int = 0
    survived: Counter[str] = field(default_factory=Counter)
    agents: Sequence[Any] = ()

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start(self) -> None:
        settings = (*SHORT, "hardware.peer_timeout=3", *settings_of(self.steps), f"data.root={self.root}")
        self.agents = start_agents(
            self.folder, 2, (*settings, f"output.save_path={self.run}"), restart=self.restart, job=self.seed + 10**6
        )

    def until_done(self, faults: int, seconds: float) -> None:
        """Break something every so many seconds, and end with the run."""
        draw = random.Random(self.seed)
        self.start()
        left, at = faults, time.monotonic() + seconds
        seen, moved = -1, time.monotonic()
        while True:
            time.sleep(0.05)
            if all(agent.exitcode is not None for agent in self.agents):
                if {agent.exitcode for agent in self.agents} == {0}:
                    return
                self.restart += 1
                self.start()
                at = time.monotonic() + draw.uniform(0.5, 1.5) * seconds
            step = self._step()
            if step != seen:
                seen, moved = step, time.monotonic()
            if time.monotonic() - moved > _MOST_SECONDS:
                raise AssertionError(f"no step for {_MOST_SECONDS:.0f} s:\n{self._log()[-3000:]}")
            if left and time.monotonic() > at and seen > 0 and self._ranks():
                what = draw.choice(list(FAULTS))
                FAULTS[what](self, draw.randrange(2))
                self.survived[what] += 1
                left -= 1
                at = time.monotonic() + draw.uniform(0.5, 1.5) * seconds
                print(f"fault {faults - left}/{faults} at step {seen}: {what}", flush=True)

    def rank(self, number: int) -> psutil.Process | None:
        """The process of a rank; None while it is being started again."""
        return self._ranks().get(number)

    def _ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for number, agent in enumerate(self.agents):
            if agent.exitcode is None:
                children = psutil.Process(agent.pid).children()
                own = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
                if len(own) > (number == 0):  # the first agent's first child is the coordinator
                    found[number] = own[-1]
        return found

    def _step(self) -> int:
        path = self.run / "steps.bin"
        return path.stat().st_size // 16 if path.is_file() else 0

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


def kill_rank(soak: Soak, number: int) -> None:
    _signal(soak.rank(number), signal.SIGKILL)


def kill_both_ranks(soak: Soak, number: int) -> None:
    for one in (number, 1 - number):
        _signal(soak.rank(one), signal.SIGKILL)


def stop_rank(soak: Soak, number: int) -> None:
    _signal(soak.rank(number), signal.SIGSTOP)


def kill_loader(soak: Soak, number: int) -> None:
    rank = soak.rank(number)
    for child in rank.children() if rank is not None else []:
        _signal(child, signal.SIGKILL)


def signal_one_agent(soak: Soak, number: int) -> None:
    os.kill(soak.agents[number].pid, signal.SIGUSR1)


def terminate_one_rank(soak: Soak, number: int) -> None:
    _signal(soak.rank(number), signal.SIGTERM)


def power_off(soak: Soak, number: int) -> None:
    for agent in soak.agents:
        for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
            _signal(process, signal.SIGKILL)
    for agent in soak.agents:
        agent.join(10)


FAULTS = {
    "a rank is killed": kill_rank,
    "both ranks are killed": kill_both_ranks,
    "a rank stands still": stop_rank,
    "a loader process is killed": kill_loader,
    "a signal to one task of the job": signal_one_agent,
    "a signal to one rank": terminate_one_rank,
    "all processes are killed": power_off,
}


def _signal(process: psutil.Process | None, number: int) -> None:
    try:
        if process is not None:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def settings_of(steps: int) -> tuple[str, ...]:
    """Of both runs: twelve images are three steps of an epoch."""
    return (
        f"training.max_steps={steps}",
        f"training.epochs={steps // 3 + 1}",
        "training.batch_size=2",
        f"training.validation.every_epochs={max(1, steps // 30)}",
        "training.early_stopping.patience=null",
        "data.num_workers=1",
        "output.log_every_steps=25",
        "output.checkpoint_every_steps=60",
        "output.checkpoint_every_epochs=1000000",
    )


def differences(run: Path, expected: Path) -> list[str]:
    """What is not equal, times aside."""
    found = []
    for part in ("final", "best"):
        own, other = (load_file(path / part / "model.safetensors") for path in (run, expected))
        found += [f"{part}: {name}" for name in own if not torch.equal(own[name], other[name])]
    if (run / "steps.bin").read_bytes() != (expected / "steps.bin").read_bytes():
        found.append("steps.bin")
    rows, others = (_without_times(MetricsLog(path / "metrics.jsonl").rows()) for path in (run, expected))
    found += [f"metrics.jsonl: {a} is not {b}" for a, b in zip(rows, others, strict=False) if a != b][:5]
    if len(rows) != len(others):
        found.append(f"metrics.jsonl has {len(rows)} rows, not {len(others)}")
    histories = [_history(path / "history.csv") for path in (run, expected)]
    return found if histories[0] == histories[1] else [*found, "history.csv"]


def _without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def _history(path: Path) -> list[list[str]]:
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    kept = [number for number, name in enumerate(header) if name not in _TIMES]
    return [[line[number] for number in kept] for line in [header, *lines]]


def soak(folder: Path, faults: int, seconds: float, seed: int, step_seconds: float) -> dict[str, Any]:
    """Run both, compare, and count."""
    root = folder / "set"
    write_demo_set(root, num_train=12, num_val=7, num_test=1, size=96, seed=5)
    steps = max(300, round(faults * seconds / step_seconds))
    broken, whole = (Soak(root, folder / name, steps, seed) for name in ("broken", "whole"))
    for one in (broken, whole):
        one.folder.mkdir()
    began = time.monotonic()
    broken.until_done(faults, seconds)
    wall = time.monotonic() - began
    whole.until_done(0, seconds)
    record = json.loads((broken.run / "training_params.json").read_text())
    back = [a["restarted_in_place"]["seconds_to_first_step"] for a in record["attempts"] if "restarted_in_place" in a]
    return {
        "faults": dict(broken.survived),
        "steps": steps,
        "restarts_in_place": len(back),
        "requeues": broken.restart,
        "seconds_to_first_step": {
            "median": sorted(back)[len(back) // 2] if back else None,
            "most": max(back, default=None),
        },
        "goodput": record["goodput"],
        "wall_seconds": round(wall, 1),
        "differences": differences(broken.run, whole.run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=6.0, help="between faults, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step-seconds", type=float, default=0.05, help="expected, for the length of the run")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        found = soak(folder, arguments.faults, arguments.seconds, arguments.seed, arguments.step_seconds)
        print(json.dumps(found, indent=2))
        if found["differences"]:
            sys.exit("the results are not those of the run without faults")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
