"""A sweep: one configuration and the settings of each of its runs.

base: ../spark_b2.yaml      # relative to this file, as in a configuration
grid:                       # every combination, the last key fastest
  training.optimizer.lr: [3e-5, 6e-5]
  experiment.seed: [1, 2]
runs:                       # or these, one after another
  - {model.variant: b3, training.batch_size: 4}
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.config.fields import FIELDS
from segformer_spark.config.yaml12 import read_table
from segformer_spark.errors import ConfigError

_MAX_NAME = 64  # as config.schema's RUN_NAME_PATTERN has it


@dataclass(frozen=True)
class SweepRun:
    """One run: its name, and `--set` items on top of `base`."""

    name: str
    base: Path
    settings: tuple[str, ...]

    @property
    def overrides(self) -> list[str]:
        """For `load_config`, with the run's name; later items win."""
        return [f"experiment.name={self.name}", *self.settings]


def read_sweep(path: Path) -> list[SweepRun]:
    """All runs of a sweep, in the order of array indices.

    Raises:
        ConfigError: no such file, or something in it that is not understood.
    """
    tree = read_table(path, "sweep", ("base",), ("grid", "runs"))
    if ("grid" in tree) == ("runs" in tree):
        raise ConfigError(f"{path}: give grid (every combination) or runs (a list), one of them")
    settings = _combinations(tree["grid"], path) if "grid" in tree else tree["runs"]
    if not isinstance(settings, list) or not all(isinstance(one, dict) and one for one in settings) or not settings:
        raise ConfigError(f"{path}: runs is a list of tables {{section.key: value}}")
    unknown = sorted({key for one in settings for key in one} - FIELDS.keys())
    if unknown:
        raise ConfigError(f"{path}: {', '.join(unknown)}: no such key of the configuration")
    base = base_file(path, tree["base"])
    return [
        SweepRun(
            _name(path.stem, index, one), base, tuple(f"{key}={setting_text(value)}" for key, value in one.items())
        )
        for index, one in enumerate(settings)
    ]


def base_file(path: Path, base: Any) -> Path:
    """The configuration that a sweep or study at `path` names.

    Raises:
        ConfigError: there is none.
    """
    file = path.parent / str(base)
    if not file.is_file():
        raise ConfigError(f"{path}: base {base}: there is no such configuration file beside it")
    return file


def _combinations(grid: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"{path}: grid is a table {{section.key: [value, value]}}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def setting_text(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _name(sweep: str, index: int, settings: dict[str, Any]) -> str:
    """Sweep, index and settings, in the characters that a run's name may have."""
    parts = [f"{key.rpartition('.')[2]}_{setting_text(value)}" for key, value in settings.items()]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([sweep[: _MAX_NAME // 2], f"{index:02d}", *parts]))
    return name[:_MAX_NAME].rstrip("._-")
