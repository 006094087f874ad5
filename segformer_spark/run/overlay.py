"""Curves of several runs in one figure, and their best and last values in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_csv
from segformer_spark.run.directory import RunDirectory
from segformer_spark.run.figures import new_figure, save_figure
from segformer_spark.run.listing import record_of
from segformer_spark.run.metrics_log import MetricsLog

Row = dict[str, Any]


def overlay_runs(runs: Sequence[RunDirectory], metric: str, output: Path) -> list[Row]:
    """Draw `metric` of every run against the epoch as PNG, and write the table beside it as CSV; returns its rows.

    Args:
        metric: a value of validations, or else of training intervals, such as miou, val_loss or lr.

    Raises:
        UserError: no run has it; the values that there are are named.
    """
    names = [run.path.name for run in runs]
    labels = [str(run.path) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]
    curves = {label: _curve(run, metric) for run, label in zip(runs, labels, strict=True)}
    if not any(curves.values()):
        known = sorted({key for run in runs for row in MetricsLog(run.metrics).rows() for key in _numbers(row)})
        raise UserError(f"runs plot: no run has {metric!r}; there are {', '.join(known) or 'no values yet'}")
    figure = new_figure(8, 4.2)
    axis = figure.subplots()
    for name, points in curves.items():
        if points:
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None, linewidth=1.2, label=name)
    axis.set(xlabel="epoch", ylabel=metric)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    save_figure(figure, output)
    rows = [_row(name, metric, points) for name, points in curves.items()]
    write_csv(output.with_suffix(".csv"), list(rows[0]), rows)
    return rows


def _curve(run: RunDirectory, metric: str) -> list[tuple[float, float]]:
    """(epoch, value); of validations where they have it."""
    per_epoch = record_of(run).get("runtime", {}).get("steps_per_epoch")
    found: dict[str, list[tuple[float, float]]] = {"validation": [], "train": []}
    for row in MetricsLog(run.metrics).rows():
        value = row.get(metric)
        if isinstance(value, int | float):
            epoch = row["step"] / per_epoch if per_epoch else float(row["epoch"])
            found[row["kind"]].append((epoch, float(value)))
    return found["validation"] or found["train"]


def _numbers(row: Row) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, int | float) and key not in ("step", "epoch")]


def _row(name: str, metric: str, points: Sequence[tuple[float, float]]) -> Row:
    highest, lowest = (choose(points, key=lambda point: point[1], default=None) for choose in (max, min))
    return {
        "run": name,
        "metric": metric,
        "points": len(points),
        "highest": None if highest is None else round(highest[1], 6),
        "epoch_of_highest": None if highest is None else round(highest[0], 2),
        "lowest": None if lowest is None else round(lowest[1], 6),
        "epoch_of_lowest": None if lowest is None else round(lowest[0], 2),
        "last": round(points[-1][1], 6) if points else None,
        "last_epoch": round(points[-1][0], 2) if points else None,
    }
