"""A study: models x data sets x recipes x seeds, each combination a run.

base: camvid_base.yaml                # relative to this file
models:                               # name in tables: settings
  SegFormer-B0: {model.variant: b0}
  U-Net: {model.name: unet, model.pretrained: imagenet}
data:                                 # these axes may be left out
  camvid: {data.dataset: camvid, data.root: data/camvid}
recipes:                              # the first is what an ablation compares with
  none: {augmentation.horizontal_flip: 0}
  flip: {augmentation.horizontal_flip: 0.5}
seeds: [1, 2]
splits: [val, train]                  # evaluated; the first is compared; default the validation split
examples: 4                           # images in the grid of predictions
reference:                            # figures of somebody else, by model or recipe, shown beside ours
  SegFormer-B0: {val_miou: 0.3557, note: 12 epochs}

Later settings win: base, data, model, recipe, seed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import ResolvedConfig, load_config
from segformer_spark.config.schema import RUN_NAME_PATTERN
from segformer_spark.config.sweep import SweepRun, base_file, read_sweep, setting_text
from segformer_spark.config.yaml12 import parse_file, read_table
from segformer_spark.errors import ConfigError

_AXES = ("data", "models", "recipes")
_REQUIRED = ("base", "models")
_OPTIONAL = ("data", "recipes", "seeds", "splits", "examples", "reference")
REFERENCE_FIGURES = ("val_miou", "train_miou")
"""What `reference` may say of a model or recipe, beside a note."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class StudyRun(SweepRun):
    """A run with its labels on the axes; an axis that the study leaves out has an empty label.

    `folder` is its run directory unless output.save_path is set otherwise.
    """

    model: str = ""
    data: str = ""
    recipe: str = ""
    seed: int = 0
    folder: Path = Path()

    @property
    def label(self) -> str:
        """Model and recipe: what is compared on a data set."""
        return ", ".join(part for part in (self.model, self.recipe) if part)


@dataclass(frozen=True)
class Study:
    """All of a study file.

    Attributes:
        runs: in the order of array indices.
        recipes: their names in order, with the settings of each.
        splits: to be evaluated; empty for the validation split of each run.
        examples: images in the grid of predictions.
        reference: {model or recipe: figures of another study}.
    """

    name: str
    path: Path
    runs: tuple[StudyRun, ...]
    recipes: Mapping[str, Settings]
    splits: tuple[str, ...] = ()
    examples: int = 4
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its runs and results lie unless the command line says otherwise."""
        return Path("studies") / self.name


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: no such file, or something in it that is not understood.
    """
    tree = read_table(path, "study", _REQUIRED, _OPTIONAL)
    base = base_file(path, tree["base"])
    data, models, recipes = (_axis(tree, axis, path) for axis in _AXES)
    seeds = tree.get("seeds", [42])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"{path}: seeds is a list of whole numbers from 0 on")
    runs = []
    for dataset, model, recipe, seed in itertools.product(data, models, recipes, seeds):
        settings = {**data[dataset], **models[model], **recipes[recipe], "experiment.seed": seed}
        name = _name(path, [part for part in (dataset, model, recipe) if part], seed)
        items = tuple(f"{key}={setting_text(value)}" for key, value in settings.items())
        folder = Path("studies") / path.stem / "runs" / name
        runs.append(StudyRun(name, base, items, model, dataset, recipe, seed, folder))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two runs have one name, {max(names, key=names.count)}: give other names or seeds")
    splits, examples = tree.get("splits", []), tree.get("examples", 4)
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise ConfigError(f"{path}: splits is a list of names of splits")
    if type(examples) is not int or examples < 0:
        raise ConfigError(f"{path}: examples is a number of images")
    reference = _reference(tree.get("reference", {}), {*models, *recipes}, path)
    return Study(path.stem, path, tuple(runs), recipes, tuple(splits), examples, reference)


def read_runs(path: Path) -> list[SweepRun]:
    """The runs of a sweep file or a study file, in the order of array indices.

    Raises:
        ConfigError: no such file, or something in it that is not understood.
    """
    tree = parse_file(path)[0] if path.is_file() else None
    return list(read_study(path).runs) if isinstance(tree, dict) and "models" in tree else list(read_sweep(path))


def pick_run(path: Path, index: int) -> SweepRun:
    """The run of one array index.

    Raises:
        ConfigError: the file has fewer runs.
    """
    runs = read_runs(path)
    if not 0 <= index < len(runs):
        raise ConfigError(f"{path}: there is no run {index}; there are {len(runs)}: sbatch --array=0-{len(runs) - 1}")
    return runs[index]


def resolve_run(
    run: SweepRun, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> ResolvedConfig:
    """The configuration of a run. Its own settings win over the environment's, which are the same for all runs.

    Where a study's run lies is the exception: SAVE_PATH may move all of them.
    """
    own = list(run.overrides)
    if isinstance(run, StudyRun) and not (environment or {}).get("SAVE_PATH"):
        own.insert(0, f"output.save_path={run.folder}")
    return load_config(run.base, overrides=[*own, *overrides], environment=environment)


def _axis(tree: dict[str, Any], axis: str, path: Path) -> dict[str, Settings]:
    """{name: settings}; one nameless entry for an axis that is left out."""
    entries = tree.get(axis, {"": {}})
    good = isinstance(entries, dict) and entries and all(isinstance(one, dict | None) for one in entries.values())
    if not good:
        raise ConfigError(f"{path}: {axis} is a table {{name: {{section.key: value}}}}")
    table = {str(name): dict(one or {}) for name, one in entries.items()}
    unknown = sorted({key for one in table.values() for key in one} - FIELDS.keys())
    if unknown:
        raise ConfigError(f"{path}: {axis}: {', '.join(unknown)}: no such key of the configuration")
    return table


def _reference(table: Any, known: set[str], path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(table, dict) or not all(isinstance(one, dict) for one in table.values()):
        raise ConfigError(f"{path}: reference is a table {{model or recipe: {{val_miou: number, note: text}}}}")
    for name, one in table.items():
        if name not in known:
            raise ConfigError(f"{path}: reference: {name!r} is no model or recipe of this study")
        if not one.keys() <= {*REFERENCE_FIGURES, "note"}:
            raise ConfigError(
                f"{path}: reference of {name}: known figures are {', '.join(sorted({*REFERENCE_FIGURES, 'note'}))}"
            )
    return table


def _name(path: Path, parts: list[str], seed: int) -> str:
    """Study, labels and seed, in the characters that a run's name may have."""
    words = [re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("_") for part in (path.stem, *parts)]
    name = "-".join([*words, f"s{seed}"])
    if not re.fullmatch(RUN_NAME_PATTERN, name):
        raise ConfigError(f"{path}: the run's name {name} is too long: shorten the names of models, data or recipes")
    return name
