"""Runs a function on N gloo ranks, each a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.process_group import Group, process_group

ROOT = Path(__file__).resolve().parents[1]

context = multiprocessing.get_context("forkserver")
# The server imports the heavy packages once; each rank is a fork of it.
context.set_forkserver_preload(["tests.preload"])


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """Start `function(*args)` in a process of its own, a fork of the server; returns the process."""
    with contextlib.chdir(ROOT):  # the server that starts here finds what it is to import
        forkserver.ensure_running()
    process = context.Process(target=function, args=args)
    process.start()
    return process


@dataclass
class RunningRanks:
    """Ranks that were started."""

    processes: list[Any]
    queue: Any

    def kill(self) -> None:
        """SIGKILL to every rank and the processes that it started."""
        for process in self.processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        for process in self.processes:
            process.join(10)

    def results(self, timeout: float = 240) -> list[Any]:
        """The values in rank order.

        Raises:
            AssertionError: a rank failed (with its traceback) or did not end in time.
        """
        world_size = len(self.processes)
        values: dict[int, Any] = {}
        try:
            while len(values) < world_size:
                rank, value, error = self.queue.get(timeout=timeout)
                assert error is None, f"rank {rank} of {world_size}:\n{error}"
                values[rank] = value
        finally:
            for process in self.processes:
                process.join(timeout=10 if len(values) == world_size else 0.2)
                if process.is_alive():
                    process.kill()
        return [values[rank] for rank in range(world_size)]


def start_on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> RunningRanks:
    """Start `function(group, *args)` on every rank."""
    port = unused_port()
    queue = context.Queue()
    ranks = [forked(_run, rank, world_size, port, queue, function, args) for rank in range(world_size)]
    return RunningRanks(ranks, queue)


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
    """Call `function(group, *args)` on every rank and return the values in rank order.

    Raises:
        AssertionError: a rank failed (with its traceback) or did not end in time.
    """
    return start_on_ranks(world_size, function, *args).results(timeout)


def _run(
    rank: int, world_size: int, port: int, queue: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        launch = Launch("test", rank, world_size, rank, world_size, ("127.0.0.1", port))
        with process_group(launch, torch.device("cpu"), timeout_minutes=2) as group:
            value = function(group, *args)
            # Queues pass tensors by shared file descriptors, which end with this process.
            queue.put((rank, value, None))
            group.barrier()
        queue.close()
        queue.join_thread()
    except BaseException:  # noqa: BLE001 - reported to the test
        queue.put((rank, None, traceback.format_exc()))
        queue.close()
        queue.join_thread()


__all__ = ["Group", "context", "forked", "run_on_ranks", "start_on_ranks"]
