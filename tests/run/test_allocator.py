from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from segformer_spark.run.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def step():
    for size in (12_000_000, 9_000_000, 12_345_678, 10_165_824):
        values = torch.empty(size).fill_(1)
        kept = values * 2
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


@pytest.mark.sweep
def test_freed_maps_are_not_faulted_in_again() -> None:
    assert faults("keep") < 0.2 * faults("plain")
