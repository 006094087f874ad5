"""What a report of a run or an evaluation shows, read from its folder alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer_spark.errors import UserError
from segformer_spark.evaluation.gallery import GALLERY, INDEX, LAYERS
from segformer_spark.evaluation.result_folder import IMAGES, RESULTS
from segformer_spark.evaluation.saved_decision import DECISION_FILE
from segformer_spark.files.checksums import CHECKSUMS, root_digest
from segformer_spark.files.json_file import read_json_object
from segformer_spark.files.paths import real_path
from segformer_spark.files.regular_file import read_regular
from segformer_spark.run.console import logger
from segformer_spark.run.directory import RunDirectory


@dataclass(frozen=True)
class Picture:
    """One image of the gallery, as data URIs."""

    key: str
    name: str
    mean_iou: float
    layers: dict[str, str]


@dataclass(frozen=True)
class EvaluationContent:
    """One evaluation.

    Attributes:
        name: its folder's name.
        metrics: results.json.
        class_names, colors: colours as #rrggbb.
        pictures: by position in the evaluation.
        groups: {worst, median, best: keys of pictures}.
        cells: {"truth,prediction": [{name, key or None, pixels}]}.
        figures: {title: data URI}.
        digest: of SHA256SUMS; None where it is missing.
    """

    name: str
    metrics: dict[str, Any]
    class_names: list[str]
    colors: list[str]
    pictures: dict[str, Picture]
    groups: dict[str, list[str]]
    cells: dict[str, list[dict[str, Any]]]
    figures: dict[str, str]
    digest: str | None


@dataclass(frozen=True)
class ReportContent:
    """A run, an evaluation, or both."""

    title: str
    evaluations: list[EvaluationContent]
    params: dict[str, Any] | None = None
    curves: str | None = None
    best: dict[str, Any] | None = None
    submission: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None


def read_content(path: Path) -> ReportContent:
    """Everything that the report of a run directory or of an evaluation's folder shows.

    Raises:
        UserError: it is neither, or a file cannot be read.
    """
    run = RunDirectory(path)
    if run.is_run():
        folders = sorted(one.parent for one in run.evaluation.glob(f"*/{RESULTS}"))
        return ReportContent(
            real_path(run.path).name,
            [_evaluation(folder) for folder in folders if _is_current(folder)],
            params=_optional(run.params_json),
            curves=_uri(run.curves) if run.curves.is_file() else None,
            best=_optional(run.best / "segformer_spark.json"),
            submission=_optional(run.submission / "manifest.json"),
            decision=_optional(run.path / DECISION_FILE),
        )
    if (path / RESULTS).is_file():
        if not _is_current(path):
            raise UserError(f"{path}: this evaluation is of an earlier version", "Evaluate it again.")
        return ReportContent(real_path(path).name, [_evaluation(path)])
    raise UserError(f"{path}: neither a run directory nor a folder that `evaluate` wrote")


def _is_current(folder: Path) -> bool:
    """Whether an evaluation has what reports show; those of version 0.2.0 and before have not."""
    current = {"intervals", "edges", "boundary_iou", "missing_points"} <= read_json_object(folder / RESULTS).keys()
    if not current:
        logger.warning("%s is of an earlier version: left out; evaluate it again", folder)
    return current


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json_object(path) if path.is_file() else None


def _evaluation(folder: Path) -> EvaluationContent:
    metrics = read_json_object(folder / RESULTS)
    images = _optional(folder / IMAGES) or {}
    names = list(metrics["per_class"])
    gallery = _optional(folder / INDEX) or {"images": {}, "groups": {}, "cells": {}}
    pictures = {
        at: Picture(at, one["name"], one["mean_iou"], _layers(folder / GALLERY, one["file"]))
        for at, one in gallery["images"].items()
    }
    listed = images.get("names", [])
    cells = {
        cell: [
            {"name": listed[at] if at < len(listed) else str(at), "key": str(at) if str(at) in pictures else None}
            | {"pixels": pixels}
            for at, pixels in own
        ]
        for cell, own in gallery["cells"].items()
    }
    figures = {
        title: _uri(folder / "figures" / name)
        for title, name in (("Scores", "scores.png"), ("Calibration", "calibration.png"))
        if (folder / "figures" / name).is_file()
    }
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in images.get("colors", [])]
    return EvaluationContent(
        real_path(folder).name,
        metrics,
        names,
        colors or ["#888888"] * len(names),
        pictures,
        {kind: [str(at) for at in own] for kind, own in gallery["groups"].items()},
        cells,
        figures,
        root_digest(folder) if (folder / CHECKSUMS).is_file() else None,
    )


def _layers(folder: Path, stem: str) -> dict[str, str]:
    out = {"input": _uri(folder / f"{stem}-input.jpg")}
    return out | {name: _uri(folder / f"{stem}-{name}.png") for name in LAYERS}


def _uri(path: Path) -> str:
    try:
        data = base64.b64encode(read_regular(path)).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return f"data:image/{'jpeg' if path.suffix == '.jpg' else 'png'};base64,{data}"
