"""Everything that a comparison or an ablation writes: tables, figures, a JSON record, report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segformer_spark.anomaly.comparison import JOINED, read_metrics, write_joined
from segformer_spark.config.study import Study, anomaly_references
from segformer_spark.distributed.process_group import Group
from segformer_spark.files.atomic import write_csv, write_json
from segformer_spark.report.page import Page
from segformer_spark.run.console import logger
from segformer_spark.run.record import result_record
from segformer_spark.study.ablation import ablation_rows, deltas
from segformer_spark.study.collect import RunResult
from segformer_spark.study.comparison import paired_rows, pairs_by_data, reference_rows, run_rows, summary_rows
from segformer_spark.study.figures import (
    CURVES,
    draw_ablation,
    draw_curves,
    draw_pairs,
    draw_resolution,
    draw_tradeoffs,
)
from segformer_spark.study.grids import draw_grids

VOID_LEFT_OUT = "mIoU leaves void pixels out"
_VOID = f"{VOID_LEFT_OUT}; val_miou_void_as_error counts them as false positives."
_PAIRED = (
    "Per-image mIoU on the same images: mean difference with a 95 % bootstrap interval, Wilcoxon's signed-rank p, "
    "adjusted after Holm. It tells whether these trained models differ on such images, not whether another training of "
    "the same architectures would: that is what several seeds show. Images of one drive are not independent, which "
    "makes p too small."
)
Row = dict[str, Any]


def write_comparison(study: Study, results: Sequence[RunResult], group: Group, folder: Path) -> list[Row]:
    """Write everything into `folder`; returns the rows of summary.csv."""
    runs, summary, pairs = run_rows(study, results), summary_rows(study, results), pairs_by_data(results)
    paired = paired_rows(pairs)
    _write_table(folder / "comparison.csv", runs)
    _write_table(folder / "summary.csv", summary)
    draw_curves(results, folder / "curves.png")
    draw_tradeoffs(results, folder / "tradeoffs.png")
    draw_resolution(results, folder / "resolution.png")
    grids = draw_grids(study, results, group, folder)
    report = Page(f"Comparison: {study.name}")
    report.text(
        f"{len(results)} of {len(study.runs)} runs. {_VOID} Intervals over seeds end at 0 and 1. Columns `reference_*` "
        "are published results."
    )
    report.heading("Models")
    report.table(summary)
    report.heading("Runs")
    report.table(runs)
    report.figure(folder / "curves.png", CURVES)
    report.figure(folder / "tradeoffs.png", "mIoU against size and speed; bars span the seeds")
    report.figure(folder / "resolution.png", "mIoU, time, and time x memory against the size of the input")
    _add_anomalies(report, study, results, folder)
    published = reference_rows(study)
    if published:
        report.heading("Published results")
        report.text("Of the earlier study, as its documents have them; gains are against its baseline's.")
        report.table(published)
    if paired:
        _write_table(folder / "paired.csv", paired)
        draw_pairs(pairs, folder / "paired.png")
        report.heading("Differences on the same images")
        report.text(_PAIRED)
        report.table(paired)
        report.figure(folder / "paired.png", "Differences between models on the same images")
    for path in grids:
        report.heading(f"Predictions: {path.stem.removeprefix('predictions_')}")
        report.figure(path, "The first images of the split; mIoU in percent, void left out, beside each model")
    _finish(study, report, group, folder, {"summary": summary, "runs": runs, "paired": paired, "published": published})
    return summary


def _add_anomalies(report: Page, study: Study, results: Sequence[RunResult], folder: Path) -> None:
    """What `anomaly eval` has found of these runs, if it has been asked."""
    published = anomaly_references(study, [one.run for one in results])
    found = {label: read_metrics(one.anomaly_metrics) for label, one in zip(published, results, strict=True)}
    if any(found.values()):
        rows = write_joined(found, published, folder)
        report.heading("Anomalies")
        report.text(JOINED)
        report.table(rows)
        report.figure(folder / "anomaly.png", "Anomaly scores of every model; crosses: published figures")


def write_ablation(study: Study, results: Sequence[RunResult], group: Group, folder: Path) -> list[Row]:
    """Write everything into `folder`; returns the rows of ablation.csv."""
    rows = ablation_rows(study, results)
    found = deltas(study, rows)
    _write_table(folder / "ablation.csv", rows)
    means = [
        {
            "name": name,
            "delta_vs_none": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.count,
        }
        for name, (_, interval) in found.items()
    ]
    report = Page(f"Ablation: {study.name}")
    report.text(
        f"{len(results)} of {len(study.runs)} runs; differences to {next(iter(study.recipes))!r} with the same seed. "
        f"{VOID_LEFT_OUT}."
    )
    report.heading("Recipes")
    report.table(means)
    if found:
        draw_ablation(found, folder / "ablation.png")
        report.figure(folder / "ablation.png", "Differences to the first recipe")
    report.heading("Runs")
    report.table(rows)
    draw_curves(results, folder / "curves.png")
    report.figure(folder / "curves.png", CURVES)
    _finish(study, report, group, folder, {"recipes": means, "runs": rows})
    return rows


def _finish(study: Study, report: Page, group: Group, folder: Path, tables: dict[str, Any]) -> None:
    write_json(folder / "results.json", {**tables, "record": result_record(group.device, study=study.name)})
    report.write(folder / "report.html")
    logger.info("report: %s", folder / "report.html")


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    write_csv(path, list(dict.fromkeys(key for row in rows for key in row)), rows)
