"""What a GPU holds and what feeds it, measured on a CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from segformer_spark.bench import capacity
from segformer_spark.bench.capacity import Feeding, LargestBatch, capacity_lines, copy_bandwidth, feeding, largest_batch
from segformer_spark.bench.interleaved import Benchmark, Row
from segformer_spark.bench.workload import OURS


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_FILES", (96, 2))


@pytest.mark.sweep
def test_the_largest_batch_is_the_last_that_fitted(tmp_path: Path) -> None:
    found = largest_batch("b0", tmp_path, largest=2, image_size=64)
    assert found is not None
    assert (found.variant, found.micro_batch) == ("b0", 2)
    assert found.images_per_s > 0
    assert 0 < found.memory_gib < 2


def test_a_search_that_failed_gives_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    assert largest_batch("b0", tmp_path) is None


def test_cores_that_feed_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(benchmark: Benchmark, rounds: int) -> list[Row]:
        assert list(benchmark.workloads) == [OURS]
        cached = "data.cache=" in str(benchmark.workloads[OURS])
        return [Row(OURS, [0.01 if cached else 0.04] * rounds, [1.0] * rounds, None)]

    monkeypatch.setattr(capacity, "compare", compared)
    assert feeding(tmp_path, {}) is None
    found = feeding(tmp_path, {"a slow step": 10.0, "a fast step": 400.0})
    assert found is not None
    assert found.step == ("a fast step", 400.0)
    assert found.images_per_s == {"files": 50.0, "cache": 200.0}
    assert found.cores("files") == pytest.approx(8)


def test_the_bandwidth_of_a_copy() -> None:
    assert 1e8 < copy_bandwidth(torch.device("cpu"), num_bytes=2**20, repeats=2) < 1e13


def test_lines() -> None:
    fed = Feeding({"files": 100.0, "cache": 400.0}, ("a step", 800.0))
    lines = list(capacity_lines([LargestBatch("b2", 64, 500.0, 70.25)], [fed]))
    assert "| b2 | 64 | 500.0 | 70.2 |" in lines
    assert "One core loads 100.0 images/s from files: 8.0 cores feed 800 images/s (a step)" in lines
    assert "One core loads 400.0 images/s from cache: 2.0 cores feed 800 images/s (a step)" in lines
    assert list(capacity_lines([], [])) == []
