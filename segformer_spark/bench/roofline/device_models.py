"""What the data sheets of GPUs say, and the share of it that a kernel gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from segformer_spark.kernels.cost import Cost


@dataclass(frozen=True)
class DeviceModel:
    """Peak rates of a device, in FLOP/s and bytes/s, and how much of them a kernel reaches.

    Attributes:
        products: matrix products in bf16 or fp16 with sums in fp32, dense; None where only fp16 has them (Volta).
        tf32: matrix products in TF32; None where there are none.
        fp32: everything else.
        kernel_seconds: the least time between the starts of two kernels.
        source: of the figures.
    """

    name: str
    products: float
    tf32: float | None
    fp32: float
    bandwidth: float
    source: str
    flops_share: float = 0.65
    bandwidth_share: float = 0.85
    kernel_seconds: float = 4e-6

    def seconds(self, cost: Cost, *, tf32: bool) -> float:
        """The time of an operation: the longest of arithmetic, memory and launches."""
        arithmetic = cost.flops / (self.flops_share * self._peak(cost, tf32))
        memory = (cost.read + cost.written) / (self.bandwidth_share * self.bandwidth)
        return max(arithmetic, memory, cost.launches * self.kernel_seconds)

    def _peak(self, cost: Cost, tf32: bool) -> float:
        if cost.product in (torch.bfloat16, torch.float16):
            return self.products
        if cost.product is torch.float32 and tf32 and self.tf32 is not None:
            return self.tf32
        return self.fp32


_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet, 2021"

DEVICE_MODELS: Mapping[str, DeviceModel] = {
    "a100-40": DeviceModel("A100 40 GB", 312e12, 156e12, 19.5e12, 1.555e12, _AMPERE),
    "a100-80": DeviceModel("A100 80 GB SXM", 312e12, 156e12, 19.5e12, 2.039e12, _AMPERE),
    "h100": DeviceModel(
        "H100 SXM", 989.4e12, 494.7e12, 66.9e12, 3.35e12, "NVIDIA H100 Tensor Core GPU Architecture, 2022, table 3"
    ),
    "v100": DeviceModel("V100 SXM2", 125e12, None, 15.7e12, 0.9e12, "NVIDIA V100 Tensor Core GPU data sheet, 2020"),
}
"""By the names that `bench roofline --device-model` takes. Volta has no bf16: read its bf16 figures as fp16's."""
