"""What the runs of a study need before the first one starts: weights, data, sizes, batches.

All that is missing is named at once: a queue of trainings should not stop at the fourth.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from segformer_spark.config.batch import plan_batches
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.image_size import Size
from segformer_spark.config.schema import Config, ModelConfig
from segformer_spark.config.study import Study
from segformer_spark.data.loader import fed_sample
from segformer_spark.data.registry import open_dataset
from segformer_spark.data.transforms import TrainTransform
from segformer_spark.errors import ConfigError, DataError, UserError
from segformer_spark.files.atomic import write_json
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.paths import real_path
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.registry import build_network
from segformer_spark.models.weights import locate_weights
from segformer_spark.study.execute import PlannedRun
from segformer_spark.training.plan import check_model, open_checked, plan_schedule, resolve_loss

_OWNER = "study.json"


def check_runs(study: Study, planned: Sequence[PlannedRun], processes: int) -> None:
    """Look at every run that is not finished.

    Args:
        processes: that each training will have.

    Raises:
        UserError: everything that is missing or does not go together, each with the runs that need it.
    """
    needed_by: dict[str, list[str]] = {}
    for one in planned:
        for problem in () if one.is_finished else problems(one.resolved.config, study.splits, processes):
            needed_by.setdefault(problem, []).append(one.run.label or one.run.name)
    if needed_by:
        listed = [f"{problem}\n    for {_listed(runs)}" for problem, runs in needed_by.items()]
        raise UserError(
            f"{study.path}: nothing was started, since not all runs can be trained:\n  " + "\n  ".join(listed)
        )


def problems(config: Config, splits: Sequence[str], processes: int) -> Iterator[str]:
    """Why a run could not be trained and evaluated, one reason perhaps twice; nothing where it could."""
    checks: list[Callable[[], object]] = []
    if config.model.pretrained != "none":
        checks.append(lambda: locate_weights(config.model))
    checks += [lambda: _check_data(config, processes), lambda: _check_network(config, processes)]
    checks += [lambda split=split: open_dataset(config.data, split) for split in splits]  # type: ignore[misc]
    for check in checks:
        try:
            check()
        except UserError as error:
            yield str(error)


def _check_data(config: Config, processes: int) -> None:
    """Everything that follows from configuration and data set."""
    plan = plan_batches(config.training, processes)
    deepspeed_config(config, plan)
    train_set, _ = open_checked(config)
    resolve_loss(config, train_set)
    plan_schedule(config, plan, plan.steps_per_epoch(len(train_set)))
    fed_sample(train_set, TrainTransform.of(config, train_set.classes.names), epoch=0, index=0)


def _check_network(config: Config, processes: int) -> None:
    """Sizes and batches that the network can take."""
    if config.model.name == "segformer":
        return
    model = _on_meta(config.model, config.data.input_size)
    check_model(config, plan_batches(config.training, processes), model)


@lru_cache
def _on_meta(config: ModelConfig, size: Size) -> SegmentationModel:
    """The network without memory; the number of classes does not matter here."""
    with torch.device("meta"):
        return build_network(config, 2, size)


def claim(study: Study, folder: Path) -> None:
    """Write which study file the folder of results belongs to.

    Raises:
        ConfigError: another study file of the same name has it.
    """
    file, place = folder / _OWNER, os.path.relpath(real_path(study.path), Path.cwd())
    own = {"file": study.path.name, "place": hashlib.sha256(place.encode()).hexdigest()[:16]}
    try:
        owner = read_json_object(file)
    except DataError:
        owner = None
    if owner is not None and owner != own:
        raise ConfigError(
            f"{study.path}: the study name {study.name!r} is taken: {folder} holds runs of another file of that name",
            "Rename the study file, or remove the folder.",
        )
    if owner is None:
        write_json(file, own)


def _listed(runs: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(runs))
