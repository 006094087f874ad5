"""The command that waits for a GPU, as far as it goes without one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segformer_spark.bench.benchmarks import PRODUCTS
from segformer_spark.bench.gpu_check import (
    Attempts,
    Estimate,
    Measured,
    counted,
    device_model,
    estimate,
    model_spec,
    more_ways,
    table,
)
from segformer_spark.bench.interleaved import Benchmark, Row
from segformer_spark.bench.roofline.device_models import DEVICE_MODELS
from segformer_spark.bench.roofline.steps import StepSpec
from segformer_spark.errors import UserError

TITLE = "training step: SegFormer-B0, 16 x 512 px, 3 classes, bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "segformer_spark.bench.gpu_check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_cards_have_their_data_sheet() -> None:
    assert device_model("NVIDIA A100-SXM4-40GB") is DEVICE_MODELS["a100-40"]
    assert device_model("NVIDIA A100-SXM4-80GB") is DEVICE_MODELS["a100-80"]
    assert device_model("NVIDIA H100 80GB HBM3") is DEVICE_MODELS["h100"]
    assert device_model("Tesla V100-SXM2-16GB") is DEVICE_MODELS["v100"]
    assert device_model("NVIDIA GeForce RTX 4090") is None


def test_the_tests_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase></testsuite></testsuites>'
    )
    assert counted(report) == {"passed": 1, "failed": ["b", "d"], "skipped": ["c"]}
    with pytest.raises(UserError, match="without a report"):
        counted(tmp_path / "missing.xml")


def test_the_table_has_the_estimate_beside_the_measurement() -> None:
    rows = [
        Row("segformer_spark", [0.01, 0.02, 0.01], [1.0, 1.0, 1.0], 2048.0, 1e12),
        Row("transformers SDPA", [0.03, 0.05, 0.03], [3.0, 2.5, 3.0], 4096.0),
        Row(PRODUCTS, [0.1], [1.0], None, 2e13),
    ]
    tests = {"passed": 12, "failed": [], "skipped": []}
    measured = [Measured(Benchmark(TITLE, {}, 16), rows, Estimate(2.8, 7.5e9))]
    lines = list(table("a card", 1.5e12, tests, measured, {"train b5": "no time was left"}))
    assert lines[0] == "a card: 12 tests passed, failed: none, skipped: 0"
    assert lines[1] == "Memory bandwidth of a copy: 1500 GB/s"
    assert f"| {TITLE} | segformer_spark | 1600.0 | 10.0 | 1.00 |  | 2.0 | 50 % | 50 % |" in lines
    assert f"| {TITLE} | transformers SDPA | 533.3 | 30.0 | 3.00 | 2.80 | 4.0 |  |  |" in lines
    assert lines[-1] == "- train b5: no time was left"


def test_a_part_that_fails_costs_only_itself() -> None:
    attempts = Attempts(time.monotonic() + 60)

    def failing() -> int:
        raise UserError("the GPU's memory is full")

    assert attempts.run("one", lambda: 1) == [1]
    assert attempts.run("two", failing) == []
    assert attempts.run("three", lambda: None) == []
    late = Attempts(time.monotonic() - 1)
    assert late.run("four", lambda: 4) == []
    assert attempts.left_out == {"two": "the GPU's memory is full", "three": "it gave no result, see above"}
    assert late.left_out == {"four": "no time was left"}


def test_other_ways_are_this_packages_and_transformers() -> None:
    spec = model_spec(("train", "b2", 8, 512, 3, "bf16"))
    ways = more_ways(spec, compiled=True)
    assert {name: (own.cuda_graphs, own.compile, own.narrow_parameters) for name, own in ways.items()} == {
        "segformer_spark, CUDA graphs": ("auto", "off", False),
        "segformer_spark, compile auto": ("off", "auto", False),
        "transformers, bf16 parameters": ("off", "off", True),
        "transformers, compiled": ("off", "on", False),
    }
    assert len(more_ways(spec, compiled=False)) == 2


@pytest.mark.sweep
def test_the_estimate_is_that_of_the_roofline() -> None:
    found = estimate(StepSpec("b0", 16, 512, 3, "bf16", "gpu"), DEVICE_MODELS["a100-40"])
    assert found.ratio is not None
    assert found.ratio > 2.5
    assert 5e9 < found.moved_bytes < 15e9
