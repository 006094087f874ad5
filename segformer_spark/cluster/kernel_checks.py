"""What `doctor` says of this package's kernels on the GPU at hand."""

from __future__ import annotations

import torch

from segformer_spark.cluster.checks import WARNING, Check, passed
from segformer_spark.kernels.check import LIMITS, remembered_differences, wrong
from segformer_spark.kernels.registry import NO_TRITON


def check_kernels(device: str) -> Check:
    """This package's kernels against their plain formulas on this node's first GPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return passed("kernels", "no GPU here: a CPU has its own formulas")
    if NO_TRITON:
        return Check("kernels", WARNING, "no Triton: plain torch computes them", "install triton, as torch asks for it")
    found = remembered_differences(torch.device("cuda", 0))
    bad = wrong(found)
    if bad:
        what = "; ".join(f"{name}: {reason}" for name, reason in bad.items())
        return Check("kernels", WARNING, what, "plain torch takes their place; report it with the card's name")
    worst = {dtype: max(own.get(dtype, 0.0) for own in found.values()) for dtype in LIMITS}
    listed = ", ".join(f"{dtype} {worst[dtype]:.0e} of {limit:.0e}" for dtype, limit in LIMITS.items())
    return passed("kernels", f"{len(found)} agree with their plain formulas: {listed}")
