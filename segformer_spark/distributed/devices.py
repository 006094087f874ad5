"""The device and the CPU threads of a rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import torch

from segformer_spark.errors import UserError
from segformer_spark.run.console import logger

_FIRST_WITH_TF32 = (8, 0)
"""Compute capability of Ampere."""


def choose_device(requested: str, local_rank: int, environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device of a rank.

    Raises:
        UserError: a GPU was asked for or granted, and there is none for this rank.
    """
    granted = granted_gpus(environment)
    if requested == "cpu" or (requested == "auto" and not granted and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        asked = f"granted by {granted}" if granted else "asked for by hardware.device=cuda"
        raise UserError(
            f"a GPU is {asked}, and torch {torch.__version__} sees no GPU",
            "Check the driver (nvidia-smi) and torch's build, or set hardware.device=cpu to compute on the CPU.",
        )
    visible = torch.cuda.device_count()
    # With one GPU bound per task, SLURM shows each rank a single device.
    index = 0 if visible == 1 and local_rank > 0 and environment.get("SLURM_STEP_GPUS") else local_rank
    if index >= visible:
        raise UserError(
            f"local rank {local_rank} on {socket.gethostname()} has no GPU of its own: {visible} visible. "
            "Start as many processes per node as there are GPUs."
        )
    return torch.device("cuda", index)


def granted_gpus(environment: Mapping[str, str]) -> str:
    """The variable by which GPUs are granted to this process, with its value; empty if there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ""
    for name, none in {"CUDA_VISIBLE_DEVICES": "", "SLURM_STEP_GPUS": "", "SLURM_GPUS_ON_NODE": "0"}.items():
        if environment.get(name, "").strip() not in ("", none):  # devices are named, their number is counted
            return f"{name}={environment[name]}"
    return ""


def set_float32_products(precision: str, device: torch.device) -> bool:
    """Let products and convolutions of fp32 tensors run in TF32 if `precision` is tf32; returns whether they do.

    torch's own default is strict for products, and TF32 for cuDNN's convolutions.
    """
    wanted = precision == "tf32"
    used = wanted and device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_WITH_TF32
    torch.backends.cuda.matmul.allow_tf32 = used
    torch.backends.cudnn.allow_tf32 = used
    if wanted and not used:
        logger.info("precision tf32: this device (%s) has no TF32, fp32 is computed", device.type)
    return used


def set_threads(requested: int | None, local_ranks: int = 1) -> int:
    """Use `requested` CPU threads in this process, or its share of the node's cores; returns their number."""
    import cv2

    threads = requested or max(1, len(os.sched_getaffinity(0)) // local_ranks)
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    return threads


def use_deterministic_algorithms() -> None:
    """Let torch choose deterministic kernels in this process, or refuse where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
