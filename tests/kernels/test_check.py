"""Kernels that differ from their formula on a card are replaced on all ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segformer_spark.cluster import kernel_checks
from segformer_spark.cluster.checks import OK, WARNING
from segformer_spark.distributed.process_group import Group
from segformer_spark.kernels import check, registry
from segformer_spark.kernels.registry import OPERATIONS, runs_fused
from tests.ranks import run_on_ranks

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A GPU that is not here, and a folder for Triton's cache."""
    about = SimpleNamespace(capability=(8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: about.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(registry, "_REPLACED", {})
    import triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    return about


def replaced_on(group: Group) -> list[Any]:
    """What each rank replaces when the last one's card is wrong in two kernels, one of them by NaN."""
    found = {name: {"float32": 0.0} for name in OPERATIONS}
    if group.rank == group.world_size - 1:
        found |= {"classify": {"float32": 0.5, "bfloat16": 0.0}, "merge_levels": {"float32": float("nan")}}
    check._agree(check.wrong(found), group.gather)
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    return [name for name in OPERATIONS if not runs_fused([name], GPU)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_kernel_that_differs_on_one_rank_is_replaced_on_all(world_size: int) -> None:
    expected = [name for name in OPERATIONS if name in ("classify", "merge_levels")]
    assert run_on_ranks(world_size, replaced_on) == [expected] * world_size


def test_before_ampere_torch_multiplies(card: Any) -> None:
    assert all(runs_fused([name], GPU) for name in OPERATIONS)
    card.capability = (7, 0)
    assert {name for name in OPERATIONS if not runs_fused([name], GPU)} == {
        "classify", "classify_sums", "classify_backward", "merge_levels", "level_logits",
    }  # fmt: skip
    assert not runs_fused(["add_norm", "classify"], GPU)


def test_a_card_is_measured_once(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def measured(device: torch.device, types: list[torch.dtype]) -> dict[str, dict[str, float]]:
        calls.append(types)
        return {"layer_norm": {"float32": 1e-7}}

    monkeypatch.setattr(check, "differences", measured)
    first, second = (check.remembered_differences(GPU) for _ in range(2))
    assert first == second == {"layer_norm": {"float32": 1e-7}}
    assert len(calls) == 1
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another card")
    check.remembered_differences(GPU)
    assert len(calls) == 2


def test_doctor_shows_them(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"layer_norm": {"float32": 1e-7}, "classify": {"float32": 3e-7}}
    monkeypatch.setattr(kernel_checks, "remembered_differences", lambda device: found)
    good = kernel_checks.check_kernels("auto")
    assert good.state == OK
    assert "2 agree with their plain formulas: float32 3e-07 of 2e-05" in good.found
    found["classify"]["float32"] = 0.1
    bad = kernel_checks.check_kernels("auto")
    assert bad.state == WARNING
    assert "classify: float32 differs by 1.0e-01" in bad.found
    assert "no GPU here" in kernel_checks.check_kernels("cpu").found


def test_kernels_are_judged_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding would look like a wrong kernel in every run that asks for it."""
    seen: list[tuple[bool, bool]] = []

    def judged(operation: Any, arguments: Any) -> float:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return 0.0

    monkeypatch.setattr(check, "difference", judged)
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        check.differences(torch.device("cpu"), [torch.float32])
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert set(seen) == {(False, False)}
