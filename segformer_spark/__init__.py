"""Multi-node DeepSpeed training, evaluation, prediction and submission of SegFormer and other segmentation models.

    >>> import segformer_spark
    >>> sorted(segformer_spark.__all__)
    ['Config', 'Model', 'Prediction', 'UserError', '__version__', 'evaluate', 'load', 'load_config', 'train']

What `__all__` lists is public, and documented in docs/python.md; everything else may change. Importing this package
imports nothing else: names are looked up when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = ["Config", "Model", "Prediction", "UserError", "__version__", "evaluate", "load", "load_config", "train"]

_HOMES = {
    **dict.fromkeys(("Model", "Prediction", "evaluate", "load", "train"), "segformer_spark.api"),
    "Config": "segformer_spark.config.schema",
    "load_config": "segformer_spark.config.load",
    "UserError": "segformer_spark.errors",
}

if TYPE_CHECKING:
    from segformer_spark.api import Model, Prediction, evaluate, load, train
    from segformer_spark.config.load import load_config
    from segformer_spark.config.schema import Config
    from segformer_spark.errors import UserError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segformer_spark' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
