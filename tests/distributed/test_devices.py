from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from segformer_spark.distributed.devices import choose_device, set_float32_products, set_threads
from segformer_spark.errors import UserError
from tests.ranks import Group, run_on_ranks


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", 0).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 3, {}).type == "cpu"
    with pytest.raises(UserError, match="asked for by hardware.device=cuda, and torch .* sees no GPU"):
        choose_device("cuda", 0, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", 3) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="local rank 4 .* has no GPU"):
        choose_device("auto", 4)


def threads(group: Group, requested: int | None, ranks: int) -> tuple[int, int]:
    return set_threads(requested, ranks), torch.get_num_threads()


def test_threads_are_those_asked_for_or_a_share_of_the_cores() -> None:
    """hardware.threads"""
    cores = len(os.sched_getaffinity(0))
    assert run_on_ranks(1, threads, 3, 2) == [(3, 3)]
    assert run_on_ranks(1, threads, None, 2) == [(max(1, cores // 2),) * 2]


@pytest.mark.parametrize(
    "granted", [{"SLURM_GPUS_ON_NODE": "4"}, {"SLURM_STEP_GPUS": "2"}, {"CUDA_VISIBLE_DEVICES": "0,1"}]
)
def test_a_granted_gpu_that_torch_does_not_see_is_an_error(
    granted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trained on the CPU, status 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((name, value),) = granted.items()
    with pytest.raises(UserError, match=rf"granted by {name}={value}, and torch .* set hardware.device=cpu"):
        choose_device("auto", 0, granted)
    assert choose_device("cpu", 0, granted).type == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1", " "])
def test_gpus_that_are_hidden_are_not_granted(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 0, {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": hidden}).type == "cpu"
    assert choose_device("auto", 0, {"SLURM_GPUS_ON_NODE": "0"}).type == "cpu"


def test_one_gpu_bound_to_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_GPUS", "2")
    assert choose_device("cuda", 2) == torch.device("cuda", 0)
    monkeypatch.delenv("SLURM_STEP_GPUS")
    with pytest.raises(UserError, match="has no GPU"):
        choose_device("cuda", 2)


@pytest.fixture
def flags() -> Iterator[None]:
    """The process's switches come back after the test."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize(
    ("precision", "capability", "used"),
    [("tf32", (8, 0), True), ("tf32", (9, 0), True), ("tf32", (7, 0), False), ("fp32", (9, 0), False)],
)
def test_products_run_in_tf32_if_asked_and_had(
    precision: str, capability: tuple[int, int], used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 is strict for convolutions, too, where torch's own default is TF32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert set_float32_products(precision, torch.device("cuda", 0)) is used
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is used
    assert torch.get_float32_matmul_precision() == ("high" if used else "highest")


@pytest.mark.usefixtures("flags")
def test_a_device_without_tf32_computes_fp32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "segformer_spark"):
        logging.getLogger("segformer_spark").propagate = True
        assert not set_float32_products("tf32", torch.device("cpu"))
    assert "this device (cpu) has no TF32, fp32 is computed" in caplog.text
