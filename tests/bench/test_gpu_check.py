"""The command that waits for a GPU, as far as it goes without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segformer_spark.bench.benchmarks import PRODUCTS
from segformer_spark.bench.gpu_check import Measured, counted, device_model, estimated_ratio, table
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
    lines = list(table("a card", tests, [Measured(Benchmark(TITLE, {}, 16), rows, 2.8)], ["train b5"]))
    assert lines[0] == "a card: 12 tests passed, failed: none, skipped: 0"
    assert f"| {TITLE} | segformer_spark | 1600.0 | 10.0 | 1.00 |  | 2.0 | 50 % |" in lines
    assert f"| {TITLE} | transformers SDPA | 533.3 | 30.0 | 3.00 | 2.80 | 4.0 |  |" in lines
    assert lines[-1] == "Left out for time: train b5"


def test_the_estimated_ratio_is_that_of_the_roofline() -> None:
    assert estimated_ratio(StepSpec("b0", 16, 512, 3, "bf16", "gpu"), DEVICE_MODELS["a100-40"]) > 2.5
