"""Configurations that a run stored, maybe of an earlier version of this package.

A setting that such a configuration lacks gets the value that had the behaviour of before it existed: `absent` on the
field, else its default. Names that have changed are read under their former ones.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from segformer_spark.config.fields import FIELDS, flatten
from segformer_spark.config.load import ResolvedConfig, assign, load_config, validate
from segformer_spark.config.schema import Config
from segformer_spark.errors import ConfigError

_PRECISION = "training.precision"


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored tree with a value for every field of the schema."""
    full: dict[str, Any] = copy.deepcopy(dict(tree))
    for dotted, field in FIELDS.items():
        *sections, leaf = dotted.split(".")
        node = full
        for section in sections:
            node = node.setdefault(section, {})
        if leaf not in node:
            absent = field.absent
            assert absent is not PydanticUndefined, f"{dotted} has neither a default nor a value for older runs"
            node[leaf] = absent
    return full


def stored_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted field: value} of a stored tree, as this version writes them.

    Raises:
        ConfigError: a value that this version does not know.
    """
    config: Config = validate(complete(tree), {}).config
    return flatten(config.model_dump(mode="json"))


def load_stored_config(
    path: Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> ResolvedConfig:
    """A run's config.yaml, completed, with overrides on top (`load_config`).

    Raises:
        ConfigError: it cannot be used, or is empty.
    """

    def completed(tree: dict[str, Any]) -> dict[str, Any]:
        if not tree:
            raise ConfigError(f"{path}: the run's configuration is empty: the file is damaged")
        return complete(tree)

    return load_config(path, overrides=overrides, environment=environment, complete=completed)


def as_begun(resolved: ResolvedConfig, stored: Path) -> ResolvedConfig:
    """The configuration with which the run of a stored config.yaml goes on.

    A setting that did not exist when the run was begun, and that nobody has set, keeps the behaviour of then, where
    the default has another (`absent`); each is logged.

    Raises:
        ConfigError: the stored configuration is not understood.
    """
    begun = load_stored_config(stored).config.model_dump(mode="json")
    before, tree = flatten(begun), resolved.config.model_dump(mode="json")
    now, kept = flatten(tree), {}
    for dotted, field in FIELDS.items():
        unset = resolved.provenance[dotted] == "default" and field.absent != field.default
        if unset and before[dotted] == field.absent != now[dotted]:
            kept[dotted] = field.absent
    chosen = resolved.provenance[_PRECISION].startswith(("--set", "environment"))
    if (before[_PRECISION], now[_PRECISION]) == ("fp32", "tf32") and not chosen:  # configs/spark_base.yaml was fp32
        kept[_PRECISION] = "fp32"
    for dotted, value in kept.items():
        assign(tree, dotted, value)
        logging.getLogger("segformer_spark").info(
            "%s = %s, as when the run was begun; new runs have %s", dotted, value, now[dotted]
        )
    return validate(tree, {**resolved.provenance, **dict.fromkeys(kept, str(stored.name))}) if kept else resolved
