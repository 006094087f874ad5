"""Runs a function on the GPU that is checked, or, as its twin, on the CPU with the GPU's arithmetic."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch

from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import Group, process_group
from tests.ranks import run_on_ranks

CHECKED = os.environ.get("GPU_CHECK") == "1"
"""Whether `make gpu-check` runs: a GPU is there, or it is an error."""

DEVICE = "cuda" if CHECKED else "cpu"


def on_device(function: Callable[..., Any], *args: Any, device: str = DEVICE) -> Any:
    """The value of `function(group, *args)` in a process of its own, the only rank."""
    if device == "cpu":
        return run_on_ranks(1, function, *args)[0]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_run, args=(queue, function, args))
    process.start()
    try:
        value, error = queue.get(timeout=300)
    finally:
        process.join(timeout=30)
        if process.is_alive():
            process.kill()
    assert error is None, error
    return value


def _run(queue: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["DS_ACCELERATOR"] = "cuda"
    try:
        launch = Launch("gpu check", 0, 1, 0, 1, None)
        with process_group(launch, torch.device("cuda", 0), timeout_minutes=2) as group:
            queue.put((function(group, *args), None))
    except BaseException:  # noqa: BLE001 - reported to the test
        queue.put((None, traceback.format_exc()))
    queue.close()
    queue.join_thread()


__all__ = ["CHECKED", "DEVICE", "Group", "on_device"]
