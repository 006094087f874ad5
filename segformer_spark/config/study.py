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
baseline: SegFormer-B0                # model that gains are measured from
reference:                            # published results, by model or recipe, shown beside ours
  SegFormer-B0: {val_miou: 0.3557, note: 12 epochs}

Later settings win: base, data, model, recipe, seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from segformer_spark.config.file_kind import COMPARISON, kind_of
from segformer_spark.config.load import ResolvedConfig, load_config, run_path
from segformer_spark.config.run_names import distinct, former_slug, slug
from segformer_spark.config.section import Section
from segformer_spark.config.sweep import Settings, SweepRun, base_file, read_sweep, setting_text
from segformer_spark.config.typed_file import read_text, read_typed
from segformer_spark.config.yaml12 import parse
from segformer_spark.errors import ConfigError

Axis = dict[str, Settings | None]


class AnomalyReference(Section):
    """Published results of an anomaly score, as shares."""

    auroc: float | None = None
    aupr: float | None = None
    fpr95: float | None = None


class Reference(Section):
    """Published results of a model or recipe.

    Attributes:
        val_miou, last_val_miou: at the best epoch, and at the last.
        best_epoch, epochs: of the training; hours: that it took.
        params_m: parameters in millions, as published.
        relative_time: training time relative to the study's baseline.
    """

    val_miou: float | None = None
    last_val_miou: float | None = None
    train_miou: float | None = None
    best_epoch: float | None = None
    epochs: float | None = None
    hours: float | None = None
    params_m: float | None = None
    relative_time: float | None = None
    anomaly: dict[str, AnomalyReference] | None = None
    note: str | None = None


REFERENCE_METRICS = tuple(name for name in Reference.model_fields if name not in ("anomaly", "note"))
"""Numbers that `reference` may say of a model or recipe; `anomaly` has those of scores by their names."""


class StudyFile(Section):
    """A study as its file says it."""

    base: str
    models: Axis = Field(min_length=1)
    data: Axis | None = Field(None, min_length=1)
    recipes: Axis | None = Field(None, min_length=1)
    seeds: list[int] = Field([42], min_length=1)
    splits: list[str] = Field([])
    examples: int = Field(4, ge=0)
    baseline: str | None = None
    reference: dict[str, Reference] = Field({})

    @model_validator(mode="after")
    def _references_are_known(self) -> StudyFile:
        known = {*self.models, *(self.recipes or {})}
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError(f"baseline: {self.baseline!r} is no model of this study")
        unknown = [name for name in self.reference if name not in known]
        if unknown:
            raise ValueError(f"reference: {unknown[0]!r} is no model or recipe of this study")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds are whole numbers from 0 on")
        return self


@dataclass(frozen=True)
class StudyRun(SweepRun):
    """A run with its labels on the axes; an axis that the study leaves out has an empty label.

    Attributes:
        folder: its run directory unless output.save_path is set otherwise.
        former_name: what versions until 0.1 called it; empty where another run has that name now.
    """

    model: str = ""
    data: str = ""
    recipe: str = ""
    seed: int = 0
    folder: Path = Path()
    former_name: str = ""

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
        baseline: model that the others' gains are measured from; None for none.
        reference: {model or recipe: published results}.
    """

    name: str
    path: Path
    runs: tuple[StudyRun, ...]
    recipes: Mapping[str, Settings]
    splits: tuple[str, ...] = ()
    examples: int = 4
    baseline: str | None = None
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its runs and results lie unless the command line says otherwise."""
        return _folder(self.path)


def reference_of(study: Study, run: StudyRun) -> Mapping[str, Any]:
    """Published results of a run's model, or else its recipe; empty where there are none."""
    return study.reference.get(run.model) or study.reference.get(run.recipe) or {}


def distinct_labels(runs: Sequence[StudyRun]) -> list[str]:
    """Model and recipe of each run, with the data set and the seed where the runs have several."""
    data, seeds = len({run.data for run in runs}) > 1, len({run.seed for run in runs}) > 1
    return [
        ", ".join([run.label, *([run.data] if data else []), *([f"seed {run.seed}"] if seeds else [])]) for run in runs
    ]


def anomaly_references(study: Study, runs: Sequence[StudyRun]) -> dict[str, Mapping[str, Any]]:
    """{distinct label: published anomaly results}, in the order of the runs; empty where there are none."""
    return {
        label: reference_of(study, run).get("anomaly", {})
        for label, run in zip(distinct_labels(runs), runs, strict=True)
    }


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: no such file, or something in it that is not understood; with file and line.
    """
    file = read_typed(path, COMPARISON, StudyFile)
    base = base_file(path, file.base)
    data, models, recipes = (_axis(axis) for axis in (file.data, file.models, file.recipes))
    combinations = list(itertools.product(data, models, recipes, file.seeds))
    labels = [[*(part for part in (d, m, r) if part), f"s{seed}"] for d, m, r, seed in combinations]
    names = distinct(["-".join([slug(path.stem), *map(slug, own)]) for own in labels], labels)
    former = ["-".join([former_slug(path.stem), *map(former_slug, own)]) for own in labels]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: the runs {max(names, key=names.count)} are there twice: give other seeds")
    runs = []
    for (dataset, model, recipe, seed), name, old in zip(combinations, names, former, strict=True):
        settings = {**data[dataset], **models[model], **recipes[recipe], "experiment.seed": seed}
        items = tuple(f"{key}={setting_text(value)}" for key, value in settings.items())
        folder = _folder(path) / "runs" / name
        own_former = old if old not in names and former.count(old) == 1 else ""
        runs.append(StudyRun(name, base, items, model, dataset, recipe, seed, folder, own_former))
    reference = {name: row.model_dump(exclude_none=True) for name, row in file.reference.items()}
    return Study(
        name=path.stem,
        path=path,
        runs=tuple(runs),
        recipes=recipes,
        splits=tuple(file.splits),
        examples=file.examples,
        baseline=file.baseline,
        reference=reference,
    )


def read_runs(path: Path) -> list[SweepRun]:
    """The runs of a sweep file or a study file, in the order of array indices.

    Raises:
        ConfigError: no such file, or something in it that is not understood.
    """
    tree, _ = parse(read_text(path, "sweep or study"), str(path))
    return list(read_study(path).runs) if kind_of(tree) == COMPARISON else list(read_sweep(path))


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

    Where a study's run lies is the exception: SAVE_PATH may move all of them. A run that lies under its former name,
    and not under its name of today, keeps the former one.
    """
    own = list(run.overrides)
    if not isinstance(run, StudyRun):
        return load_config(run.base, overrides=[*own, *overrides], environment=environment)
    moved = bool((environment or {}).get("SAVE_PATH"))

    def resolved(name: str) -> ResolvedConfig:
        folder = [] if moved else [f"output.save_path={run.folder.with_name(name)}"]
        named = [f"experiment.name={name}", *run.settings]
        return load_config(run.base, overrides=[*folder, *named, *overrides], environment=environment)

    today = resolved(run.name)
    if run.former_name and not run_path(today.config).exists():
        former = resolved(run.former_name)
        if (run_path(former.config) / "config.yaml").is_file():
            return former
    return today


def _axis(axis: Axis | None) -> dict[str, Settings]:
    """{name: settings}; one nameless entry for an axis that is left out."""
    return {name: dict(settings or {}) for name, settings in (axis or {"": {}}).items()}


def _folder(path: Path) -> Path:
    return Path("studies") / path.stem
