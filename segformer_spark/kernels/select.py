"""Which arithmetic runs: the CPU's formulas, the GPU's in plain torch, or the GPU's with kernels of this package."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal

import torch

from segformer_spark.errors import ConfigError
from segformer_spark.kernels.registry import replaced
from segformer_spark.run.console import logger

Arithmetic = Literal["cpu", "plain", "gpu"]
"""cpu: few values kept, small pieces that stay in a processor's cache. plain: few bytes moved and few kernels, in plain
torch on any device. gpu: as plain, with custom operations; on a CPU they compute their plain formula."""

Setting = Literal["auto", "cpu", "plain", "gpu"]
"""As hardware.kernels names it."""

SETTINGS: tuple[Setting, ...] = ("auto", "cpu", "plain", "gpu")
VARIABLE = "SEGFORMER_KERNELS"


def select_arithmetic(setting: Setting, device: torch.device) -> Arithmetic:
    """The arithmetic for tensors on `device`; the environment variable SEGFORMER_KERNELS comes before the setting.

    Raises:
        ConfigError: the variable names none.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        setting = _from_variable(given)
    if setting != "auto":
        return setting
    return "cpu" if device.type == "cpu" else "gpu"


@functools.cache
def _from_variable(given: str) -> Setting:
    for setting in SETTINGS:
        if given == setting:
            logger.info("%s=%s takes the place of hardware.kernels", VARIABLE, given)
            return setting
    raise ConfigError(f"{VARIABLE}={given!r}: it is one of {', '.join(SETTINGS)}")


def kernels_record(setting: Setting, device: torch.device) -> dict[str, Any]:
    """For a record: the arithmetic that runs, and which of its kernels plain torch replaces."""
    return {"arithmetic": select_arithmetic(setting, device), "replaced": replaced()}
