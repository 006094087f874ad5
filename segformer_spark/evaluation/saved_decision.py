"""decision.json of a run or exported model: how class ids follow from its logits, chosen on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from segformer_spark.config.section import Section
from segformer_spark.config.typed_file import read_typed
from segformer_spark.errors import ConfigError
from segformer_spark.evaluation.decision import Decision
from segformer_spark.evaluation.postprocessing import Postprocessing
from segformer_spark.files.atomic import write_json

DECISION_FILE = "decision.json"


def decision_path(model: Path, run: Path | None) -> Path:
    """Where the decision of a model lies: in its run, in its own folder, or beside an ONNX file."""
    if model.is_file():
        return model.with_suffix(f".{DECISION_FILE}")
    places = [folder / DECISION_FILE for folder in (run, model) if folder is not None]
    return next((path for path in places if path.is_file()), places[-1])


_FORMAT = 1
_KIND = "saved decision"


class _Corrections(Section):
    largest: list[str] = Field(default_factory=list)
    min_area: float = Field(default=0.0, ge=0, le=1)
    max_hole: float = Field(default=0.0, ge=0, le=1)


class SavedDecision(Section):
    """The file's contents; classes go by name."""

    format: Literal[1]
    model_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rule: Literal["argmax", "thresholds", "expected_iou"]
    temperature: float = Field(gt=0, le=100)
    thresholds: dict[str, float] = Field(default_factory=dict)
    floor: float = Field(gt=0, le=1)
    tta: str = "none"
    inference: dict[str, Any] = Field(default_factory=dict)
    postprocessing: _Corrections = Field(default_factory=_Corrections)
    chosen: dict[str, Any] = Field(default_factory=dict)

    @property
    def summary(self) -> str:
        """In a few words."""
        parts = [self.rule if self.temperature == 1 else f"{self.rule}, temperature {self.temperature:g}"]
        parts += [] if self.tta == "none" else [f"tta {self.tta}"]
        parts += [f"{key} {value}" for key, value in sorted(self.inference.items())]
        corrections = self.postprocessing
        parts += [f"largest part of {name}" for name in corrections.largest]
        parts += [f"parts from {corrections.min_area:g} of the image"] if corrections.min_area else []
        parts += [f"holes up to {corrections.max_hole:g} filled"] if corrections.max_hole else []
        return ", ".join(parts)

    def decision(self, class_names: Sequence[str], path: Path) -> Decision:
        """For a model of these classes.

        Raises:
            ConfigError: a class of the file is none of the model's, or a threshold is missing or not above 0.
        """
        unknown = sorted(({*self.thresholds} | {*self.postprocessing.largest}) - {*class_names})
        missing = [name for name in class_names if self.thresholds and name not in self.thresholds]
        if unknown or missing:
            wrong = f"no class {', '.join(unknown)}" if unknown else f"no threshold of {', '.join(missing)}"
            raise ConfigError(f"{path}: {wrong}; the model has the classes {', '.join(class_names)}")
        if any(not 0 < value < float("inf") for value in self.thresholds.values()):
            raise ConfigError(f"{path}: thresholds: every value is above 0")
        corrections = self.postprocessing
        return Decision(
            self.rule,
            self.temperature,
            tuple(self.thresholds[name] for name in class_names) if self.thresholds else (),
            self.floor,
            Postprocessing(
                tuple(list(class_names).index(name) for name in corrections.largest),
                corrections.min_area,
                corrections.max_hole,
            ),
        )


def read_decision(path: Path) -> SavedDecision:
    """The file at `path`.

    Raises:
        ConfigError: it is damaged, with file and key.
    """
    return read_typed(path, _KIND, SavedDecision)


def decision_record(
    decision: Decision,
    class_names: Sequence[str],
    *,
    model_sha256: str,
    tta: str,
    inference: dict[str, Any],
    chosen: dict[str, Any],
) -> dict[str, Any]:
    """What decision.json holds."""
    thresholds = dict(zip(class_names, decision.thresholds, strict=True)) if decision.thresholds else {}
    corrections = asdict(decision.postprocessing)
    corrections["largest"] = [class_names[index] for index in decision.postprocessing.largest]
    return {
        "format": _FORMAT,
        "model_sha256": model_sha256,
        "rule": decision.rule,
        "temperature": decision.temperature,
        "thresholds": thresholds,
        "floor": decision.floor,
        "tta": tta,
        "inference": inference,
        "postprocessing": corrections,
        "chosen": chosen,
    }


def write_decision(path: Path, record: dict[str, Any]) -> None:
    """Write decision.json, after a check that it can be read back."""
    SavedDecision.model_validate(record)
    write_json(path, record)
