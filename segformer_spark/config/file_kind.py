"""Which verb a YAML file is for: configurations, sweeps and the two kinds of studies are easily mistaken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segformer_spark.errors import ConfigError

CONFIGURATION, SWEEP, COMPARISON, AGREEMENT = "configuration", "sweep", "study", "study of agreement"

_COMMANDS = {
    CONFIGURATION: "segformer-spark train --config {path}",
    SWEEP: "segformer-spark sweep {path}",
    COMPARISON: "segformer-spark compare run {path}, or ablate run where its recipes are compared",
    AGREEMENT: "segformer-spark agreement run --study {path} --pairs DIR --ratings FILE",
}


def kind_of(tree: Any) -> str | None:
    """What a file's tree looks like; None where that cannot be told."""
    if not isinstance(tree, dict):
        return None
    models = tree.get("models")
    if isinstance(models, dict) and models:
        return AGREEMENT if all(isinstance(model, str) for model in models.values()) else COMPARISON
    if "grid" in tree or ("runs" in tree and "base" in tree):
        return SWEEP
    return CONFIGURATION if {"data", "model", "training", "experiment", "augmentation"} & tree.keys() else None


def refuse_other_kind(tree: Any, expected: str, path: Path) -> None:
    """Raise ConfigError for a file that is plainly of another kind, with the command that takes it."""
    found = kind_of(tree)
    if found is not None and found != expected:
        article = "an" if found[0] in "aeiou" else "a"
        raise ConfigError(f"{path}: this is {article} {found}, not a {expected}", _COMMANDS[found].format(path=path))
