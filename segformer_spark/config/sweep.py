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
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from segformer_spark.config.explain import check_setting
from segformer_spark.config.file_kind import SWEEP
from segformer_spark.config.run_names import MAX_LENGTH
from segformer_spark.config.section import Section
from segformer_spark.config.typed_file import read_typed
from segformer_spark.errors import ConfigError

_FOLD = "data.cross_validation.fold"

SettingName = Annotated[str, AfterValidator(check_setting)]
"""A dotted field of the configuration."""

Settings = dict[SettingName, Any]


class SweepFile(Section):
    """A sweep as its file says it: `grid` for every combination, or `runs`, one after another."""

    base: str
    grid: dict[SettingName, Annotated[list[Any], Field(min_length=1)]] | None = Field(None, min_length=1)
    runs: list[Annotated[Settings, Field(min_length=1)]] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> SweepFile:
        if (self.grid is None) == (self.runs is None):
            raise ValueError("give grid (every combination) or runs (a list), one of them")
        return self

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """The settings of each run."""
        if self.grid is None:
            return [dict(run) for run in self.runs or []]
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


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
        ConfigError: no such file, or something in it that is not understood; with file and line.
    """
    file = read_typed(path, SWEEP, SweepFile)
    base = base_file(path, file.base)
    return [
        SweepRun(
            _name(path.stem, index, one), base, tuple(f"{key}={setting_text(value)}" for key, value in one.items())
        )
        for index, one in enumerate(file.combinations)
    ]


def base_file(path: Path, base: str) -> Path:
    """The configuration that a sweep or study at `path` names.

    Raises:
        ConfigError: there is none.
    """
    file = path.parent / base
    if not file.is_file():
        raise ConfigError(f"{path}: base {base}: there is no such configuration file beside it")
    return file


def setting_text(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _name(sweep: str, index: int, settings: dict[str, Any]) -> str:
    """Sweep, index and settings, in the characters that a run's name may have; its fold is added by `run_name`."""
    parts = [f"{key.rpartition('.')[2]}_{setting_text(value)}" for key, value in settings.items() if key != _FOLD]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([sweep[: MAX_LENGTH // 2], f"{index:02d}", *parts]))
    room = MAX_LENGTH - (len(f"-fold{settings[_FOLD]}") if _FOLD in settings else 0)
    return name[:room].rstrip("._-")
