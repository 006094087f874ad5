"""The tables of an agreement study, written and read back."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segformer_spark.agreement.correlation import KINDS, THRESHOLDS, Correlation, Maximum
from segformer_spark.agreement.objects import AreaChange
from segformer_spark.agreement.ratings import Item
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.errors import DataError
from segformer_spark.files.atomic import write_csv

Row = dict[str, Any]
RESULTS, BY_THRESHOLD = "correlation_results.csv", "correlation_by_threshold.csv"

_PAIRS = ["base", "type", "area_before", "area_after", "area_change", "iou_before", "iou_after", "share_different"]


def write_tables(
    results: Sequence[ModelAgreement], items: Sequence[Item], reference: Mapping[str, Mapping[str, float]], folder: Path
) -> None:
    """pairs.csv of every model, correlation_by_threshold.csv and correlation_results.csv."""
    for result in results:
        write_csv(folder / result.name / "pairs.csv", _PAIRS, list(_pair_rows(items, result.changes)))
    rows = [row for result in results for row in _threshold_rows(result)]
    write_csv(folder / BY_THRESHOLD, list(rows[0]), rows)
    table = result_rows(results, reference)
    write_csv(folder / RESULTS, list(table[0]), table)


def read_tables(folder: Path) -> tuple[list[ModelAgreement], dict[str, dict[str, float]]]:
    """What `write_tables` wrote, without the changes of single pairs, and the published maxima in it.

    Raises:
        DataError: a table is missing, or is none of an agreement study.
    """
    rows, by_threshold = (_read(folder / name) for name in (RESULTS, BY_THRESHOLD))
    try:
        curves = {row["model"]: [one for one in by_threshold if one["model"] == row["model"]] for row in rows}
        results = [_result(row, curves[row["model"]]) for row in rows]
        reference = {
            row["model"]: {
                f"max_{kind}": float(row[f"reference_max_{kind}"])
                for kind in KINDS
                if row.get(f"reference_max_{kind}") not in (None, "")
            }
            for row in rows
        }
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{folder / RESULTS}: this is no table of an agreement study: {error}") from error
    return results, {model: known for model, known in reference.items() if known}


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the table cannot be read: {error}", "Give the folder of `agreement run`.") from error


def _result(row: Mapping[str, str], curve: Sequence[Mapping[str, str]]) -> ModelAgreement:
    def number(value: str | None) -> float | None:
        return None if value in (None, "") else float(value)

    if [float(one["threshold"]) for one in curve] != list(THRESHOLDS):
        raise ValueError(f"the thresholds of {row['model']} are not {THRESHOLDS[0]} to {THRESHOLDS[-1]}")
    return ModelAgreement(
        name=row["model"],
        variant=row["variant"],
        parameters=int(float(row["parameters"])),
        changes=(),
        by_threshold={
            kind: [Correlation(number(one[kind]), number(one[f"{kind}_p"])) for one in curve] for kind in KINDS
        },
        maxima={
            kind: Maximum(
                number(row[f"threshold_{kind}"]),
                number(row[f"max_{kind}"]),
                number(row[f"permutation_p_{kind}"]),
                number(row[f"low_{kind}"]),
                number(row[f"high_{kind}"]),
            )
            for kind in KINDS
        },
        num_items=int(float(row["n"])),
    )


def _pair_rows(items: Sequence[Item], changes: Sequence[AreaChange]) -> list[Row]:
    return [
        {
            "base": item.base,
            "type": item.kind,
            "area_before": change.area_before,
            "area_after": change.area_after,
            "area_change": _rounded(change.relative),
            "iou_before": _rounded(change.iou_before),
            "iou_after": _rounded(change.iou_after),
            "share_different": _rounded(item.share_different),
        }
        for item, change in zip(items, changes, strict=True)
    ]


def _threshold_rows(result: ModelAgreement) -> list[Row]:
    return [
        {
            "model": result.name,
            "threshold": threshold,
            "pearson": _rounded(pearson.value),
            "pearson_p": _rounded(pearson.p),
            "spearman": _rounded(spearman.value),
            "spearman_p": _rounded(spearman.p),
            "n": result.num_items,
        }
        for threshold, pearson, spearman in zip(THRESHOLDS, *(result.by_threshold[kind] for kind in KINDS), strict=True)
    ]


def result_rows(results: Sequence[ModelAgreement], reference: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """correlation_results.csv: a row per model."""
    return [_result_row(result, reference) for result in results]


def _result_row(result: ModelAgreement, reference: Mapping[str, Mapping[str, float]]) -> Row:
    row: Row = {"model": result.name, "variant": result.variant, "parameters": result.parameters}
    row |= {f"max_{kind}": _rounded(best.value) for kind, best in result.maxima.items()}
    row |= {f"threshold_{kind}": best.threshold for kind, best in result.maxima.items()}
    row |= {f"permutation_p_{kind}": _rounded(best.p) for kind, best in result.maxima.items()}
    for kind, best in result.maxima.items():
        row[f"low_{kind}"], row[f"high_{kind}"] = _rounded(best.low), _rounded(best.high)
    row["n"] = result.num_items
    if reference:
        row |= {f"reference_max_{kind}": reference.get(result.name, {}).get(f"max_{kind}") for kind in result.maxima}
    return row


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
