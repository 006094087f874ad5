"""Which arithmetic a device can do, as far as the configuration alone tells."""

from __future__ import annotations

from segformer_spark.errors import ConfigError


def refuse_fp16_on_cpu(precision: str, device_type: str) -> None:
    """Raise ConfigError for fp16 without a GPU."""
    if precision == "fp16" and device_type == "cpu":
        raise ConfigError("training.precision fp16 needs a GPU; on the CPU use fp32 or bf16")
