"""Runs a function on N gloo ranks, each a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import Group, process_group

_context = multiprocessing.get_context("forkserver")
# The server imports the heavy packages once; each rank is a fork of it.
_context.set_forkserver_preload(["tests.preload"])


def run_on_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
    """Call `function(group, *args)` on every rank and return the values in rank order.

    Raises:
        AssertionError: a rank failed (with its traceback) or did not end in time.
    """
    port = _free_port()
    queue = _context.Queue()
    ranks = [
        _context.Process(target=_run, args=(rank, world_size, port, queue, function, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    values: dict[int, Any] = {}
    try:
        while len(values) < world_size:
            rank, value, error = queue.get(timeout=timeout)
            assert error is None, f"rank {rank} of {world_size}:\n{error}"
            values[rank] = value
    finally:
        for process in ranks:
            process.join(timeout=10 if len(values) == world_size else 0.2)
            if process.is_alive():
                process.kill()
    return [values[rank] for rank in range(world_size)]


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


__all__ = ["Group", "run_on_ranks"]
