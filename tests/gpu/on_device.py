"""Runs a function on the GPU that is checked, or, as its twin, on the CPU with the GPU's arithmetic."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.ports import unused_port
from segformer_spark.distributed.process_group import Group, process_group
from tests.ranks import run_on_ranks

CHECKED = os.environ.get("GPU_CHECK") == "1"
"""Whether `make gpu-check` runs: a GPU is there, or it is an error."""

DEVICE = "cuda" if CHECKED else "cpu"


def on_device(function: Callable[..., Any], *args: Any, device: str = DEVICE, ranks: int = 1) -> Any:
    """The value of `function(group, *args)` on rank 0 of so many processes, all on the one GPU."""
    if device == "cpu":
        return run_on_ranks(ranks, function, *args)[0]
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), unused_port()
    processes = [context.Process(target=_run, args=(queue, rank, ranks, port, function, args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    values = {}
    try:
        for _ in processes:
            rank, value, error = queue.get(timeout=300)
            assert error is None, error
            values[rank] = value
    finally:
        for process in processes:
            process.join(timeout=30 if len(values) == ranks else 1)
            if process.is_alive():
                process.kill()
    return values[0]


def _run(queue: Any, rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["DS_ACCELERATOR"] = "cuda"
    master, backend = (("127.0.0.1", port), "gloo") if ranks > 1 else (None, None)
    try:
        launch = Launch("gpu check", rank, ranks, rank, ranks, master)
        with process_group(launch, torch.device("cuda", 0), timeout_minutes=2, backend=backend) as group:
            queue.put((rank, function(group, *args), None))
            group.barrier()
    except BaseException:  # noqa: BLE001 - reported to the test
        queue.put((rank, None, traceback.format_exc()))
    queue.close()
    queue.join_thread()


__all__ = ["CHECKED", "DEVICE", "Group", "on_device"]
