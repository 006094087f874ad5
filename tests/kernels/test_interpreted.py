"""The kernels in Triton's interpreter against their plain formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.kernels.check import TOLERANCE, wrong
from segformer_spark.kernels.registry import NO_TRITON, OPERATIONS
from tests.once import made_once
from tests.ranks import ROOT

pytestmark = pytest.mark.skipif(NO_TRITON, reason="torch's builds without CUDA bring no Triton")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the interpreter found; minutes, so that one worker waits for the other."""
    found = made_once(tmp_path_factory, "interpreted_kernels", lambda folder: _interpret(folder, "float32"))
    return json.loads((found / "found.json").read_text())


def _interpret(folder: Path, *precisions: str) -> None:
    command = [sys.executable, "-m", "tests.kernels.interpreted", *precisions]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "found.json").write_text(done.stdout)


def test_every_kernel_computes_its_plain_formula(interpreted: Any) -> None:
    assert interpreted["differences"].keys() == OPERATIONS.keys()
    assert wrong(interpreted["differences"]) == {}
    # The bounds are not so wide that they would let a wrong formula pass.
    assert all(own["float32"] < 1e-5 for own in interpreted["differences"].values())
    assert max(TOLERANCE.values()) < 0.05
    assert interpreted["differences"]["normalize"]["float32"] == 0, "a GPU is fed with the CPU's values"


@pytest.mark.sweep
def test_in_half_precision_too(tmp_path: Path) -> None:
    _interpret(tmp_path, "bfloat16")
    assert wrong(json.loads((tmp_path / "found.json").read_text())["differences"]) == {}


def test_a_wrong_kernel_is_found(interpreted: Any) -> None:
    found = {"layer_norm": {"float32": interpreted["broken"]}, "classify": {"float32": float("nan")}}
    assert wrong(found).keys() == found.keys()


def test_costs_are_what_the_kernels_load_and_store(interpreted: Any) -> None:
    for name, (read, written, says_read, says_written) in interpreted["traffic"].items():
        # The loss also reads tables of a few numbers, and at the edges less than all.
        assert says_read == pytest.approx(read, rel=0.15 if "loss" in name or name == "class_ids" else 0.005), name
        assert says_written == pytest.approx(written, rel=0.005), name
