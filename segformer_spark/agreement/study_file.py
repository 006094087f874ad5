"""A study file of `agreement`: which models, and what was published about them.

models: {B0: weights/segformer-b0-finetuned-ade-512-512}     # name in tables: run directory or model folder
ignore_class: [wall]                                         # may be left out
reference: {B0: {max_pearson: 0.178, max_spearman: 0.182}}   # may be left out
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from segformer_spark.config.file_kind import AGREEMENT
from segformer_spark.config.section import Section
from segformer_spark.config.typed_file import read_typed


class PublishedMaxima(Section):
    """Highest correlations over the thresholds."""

    max_pearson: float | None = None
    max_spearman: float | None = None


class AgreementStudyFile(Section):
    """The file as it says it."""

    models: dict[str, str] = Field(min_length=1)
    ignore_class: list[str] = Field([])
    reference: dict[str, PublishedMaxima] = Field({})

    @model_validator(mode="after")
    def _references_are_known(self) -> AgreementStudyFile:
        unknown = [name for name in self.reference if name not in self.models]
        if unknown:
            raise ValueError(f"reference of {unknown[0]}: it is none of the models")
        return self


@dataclass(frozen=True)
class AgreementStudy:
    """Models by name, classes that are no object, and {model: {max_pearson, max_spearman}} as published."""

    models: Mapping[str, Path]
    ignored: tuple[str, ...]
    reference: Mapping[str, Mapping[str, float]]


def read_agreement_study(path: Path) -> AgreementStudy:
    """Read a study file.

    Raises:
        ConfigError: no such file, or something in it that is not understood; with file and line.
    """
    file = read_typed(path, AGREEMENT, AgreementStudyFile)
    return AgreementStudy(
        {name: Path(folder) for name, folder in file.models.items()},
        tuple(file.ignore_class),
        {name: row.model_dump(exclude_none=True) for name, row in file.reference.items()},
    )
