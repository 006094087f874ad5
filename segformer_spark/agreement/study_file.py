"""A study file of `agreement`: which models, and what somebody else found for them.

models: {B0: weights/segformer-b0-finetuned-ade-512-512}     # name in tables: run directory or model folder
ignore_class: [wall]                                         # may be left out
reference: {B0: {max_pearson: 0.178, max_spearman: 0.182}}   # may be left out
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segformer_spark.agreement.correlation import KINDS
from segformer_spark.config.yaml12 import read_table
from segformer_spark.errors import ConfigError


@dataclass(frozen=True)
class AgreementStudy:
    """Models by name, classes that are no object, and {model: {max_pearson, max_spearman}} of another study."""

    models: Mapping[str, Path]
    ignored: tuple[str, ...]
    reference: Mapping[str, Mapping[str, float]]


def read_agreement_study(path: Path) -> AgreementStudy:
    """Read a study file.

    Raises:
        ConfigError: no such file, or something in it that is not understood.
    """
    tree = read_table(path, "study of agreement", ("models",), ("ignore_class", "reference"))
    reference, ignored = tree.get("reference", {}), tree.get("ignore_class", [])
    figures = {f"max_{kind}" for kind in KINDS}
    if not all(isinstance(one, dict) for one in (tree["models"], reference)) or not isinstance(ignored, list):
        raise ConfigError(f"{path}: models and reference are tables, ignore_class a list of names")
    for name, row in reference.items():
        numbers = isinstance(row, dict) and row.keys() <= figures and all(type(v) is float for v in row.values())
        if name not in tree["models"] or not numbers:
            raise ConfigError(
                f"{path}: reference of {name}: a table of {', '.join(sorted(figures))} of one of the models"
            )
    models = {str(name): Path(str(folder)) for name, folder in tree["models"].items()}
    return AgreementStudy(models, tuple(str(name) for name in ignored), reference)
