"""The table of an ablation: what each recipe changes against the first one, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segformer_spark.config.schema import AugmentationConfig
from segformer_spark.config.study import Study, reference_of
from segformer_spark.errors import ConfigError
from segformer_spark.study.collect import RunResult
from segformer_spark.study.statistics import Interval, over_seeds

Row = dict[str, Any]


def check_ablation(study: Study) -> None:
    """Raise ConfigError when a study has nothing to compare with: an ablation has recipes of one model and data set."""
    others = {(run.model, run.data) for run in study.runs}
    if len(study.recipes) < 2 or len(others) > 1:
        raise ConfigError(
            f"{study.path}: an ablation has two recipes or more, the first to compare with, of one model on one data "
            f"set; here are {len(study.recipes)} recipes and {len(others)} combinations of model and data"
        )


def ablation_rows(study: Study, results: Sequence[RunResult]) -> list[Row]:
    """ablation.csv: one row per recipe and seed."""
    first = next(iter(study.recipes))
    baseline = {result.run.seed: result.miou for result in results if result.run.recipe == first}
    rows = [_row(result, baseline.get(result.run.seed)) for result in results]
    if study.reference:
        for row, result in zip(rows, results, strict=True):
            row["reference_miou"] = reference_of(study, result.run).get("val_miou")
    return rows


def deltas(study: Study, rows: Sequence[Row]) -> dict[str, tuple[list[float], Interval]]:
    """{recipe: (difference to the first recipe per seed, their mean and interval)}, of recipes that have a pair."""
    found: dict[str, list[float]] = {recipe: [] for recipe in study.recipes}
    for row in rows:
        if row["delta_vs_none"] is not None:
            found[row["name"]].append(row["delta_vs_none"])
    return {recipe: (values, over_seeds(values)) for recipe, values in found.items() if values}


def switches(config: AugmentationConfig) -> str:
    """The augmentations that are on."""
    names = {
        "horizontal_flip": "flip",
        "vertical_flip": "vertical flip",
        "affine": "affine",
        "color": "colour jitter",
        "blur": "blur",
        "photometric": "photometric",
        "coarse_dropout": "coarse dropout",
        "mosaic": "mosaic",
    }
    on = [text for name, text in names.items() if getattr(config, name) > 0]
    if config.crop.mode != "none":
        on.append(f"{config.crop.mode} crops")
    return " + ".join(on) or "none"


def _row(result: RunResult, baseline: float | None) -> Row:
    crop = result.config.augmentation.crop
    scales = crop.scale if crop.mode in ("fixed", "variable", "original") else (None, None)
    miou = result.miou
    return {
        "name": result.run.recipe,
        "switches": switches(result.config.augmentation),
        "scale_min": scales[0],
        "scale_max": scales[1],
        "seed": result.run.seed,
        "best_epoch": round(result.epoch_of(result.model_step), 2),
        "val_miou": None if miou is None else round(miou, 6),
        "delta_vs_none": None if miou is None or baseline is None else round(miou - baseline, 6),
        "seconds": round(result.seconds, 1),
    }
