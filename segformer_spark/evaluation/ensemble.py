"""Several models as one: a folder that is asked like a run, with the mean of its members' probabilities.

    {"format": 1, "members": [{"model": "../spark_b2_512-fold0/best", "sha256": ...}, ...]}

Paths are relative to the folder; sha256 is that of a member's weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from segformer_spark.config.load import validate
from segformer_spark.config.section import Section
from segformer_spark.config.stored import load_stored_config
from segformer_spark.config.typed_file import read_typed
from segformer_spark.errors import CheckpointError, UserError
from segformer_spark.files.atomic import write_json, write_text
from segformer_spark.files.digest import sha256_of
from segformer_spark.files.paths import real_path
from segformer_spark.run.directory import ENSEMBLE, RunDirectory, dump_config

_GUIDE = """This folder is an ensemble of segformer_spark: models whose mean probability counts.

ensemble.json             the models, with the sha256 of their weights
config.yaml               the configuration of the first, without its fold
evaluation/, predictions/, submission/   what these verbs wrote
"""


class _Member(Section):
    model: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Ensemble(Section):
    format: Literal[1]
    members: list[_Member] = Field(min_length=1)


def write_ensemble(folder: Path, members: Sequence[tuple[Path, Path]], run: Path) -> None:
    """Make the folder.

    Args:
        members: model folder and weights' file of each.
        run: a run whose configuration names the data set.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder}: this exists", "Remove it, or give another --output.")
    tree = load_stored_config(RunDirectory(run).config).config.model_dump()
    tree["experiment"]["name"] = folder.name
    tree["data"]["cross_validation"] = {}
    resolved = validate(tree, {})
    folder.mkdir(parents=True)
    listed = [
        {"model": os.path.relpath(real_path(model), real_path(folder)), "sha256": sha256_of(weights)}
        for model, weights in members
    ]
    write_json(folder / ENSEMBLE, {"format": 1, "members": listed})
    write_text(folder / "README.txt", _GUIDE)
    write_text(RunDirectory(folder).config, dump_config(resolved))


def read_ensemble(path: Path) -> list[tuple[Path, str]]:
    """The members of an ensemble.json: where each lies, and the sha256 that its weights had.

    Raises:
        UserError: the file is damaged, or a member is gone.
    """
    members = [
        (Path(os.path.normpath(path.parent / one.model)), one.sha256)
        for one in read_typed(path, "list of models", _Ensemble).members
    ]
    for member, _ in members:
        if not member.exists():
            raise CheckpointError(f"{path}: its member {member} is gone")
    return members


def check_members(ensemble: Path, weights: Mapping[Path, str]) -> None:
    """Raise CheckpointError when a member's weights, by file, have another sha256 than when the ensemble was made."""
    for file, sha256 in weights.items():
        if sha256_of(file) != sha256:
            raise CheckpointError(
                f"{ensemble}: {file} has other weights than when the ensemble was made",
                "Make it anew: segformer-spark runs ensemble RUN RUN --output DIR.",
            )
