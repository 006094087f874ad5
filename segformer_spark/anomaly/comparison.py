"""Anomaly results of several models side by side: a table of models x methods, with what was published beside it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.files.atomic import write_csv
from segformer_spark.run.figures import new_figure, save_figure

Row = dict[str, Any]
METRICS = ("auroc", "aupr", "fpr95")

_TITLES = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at 95 % recall"}


def read_metrics(folder: Path) -> list[Row]:
    """The rows of an evaluation's metrics.csv; none without one."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return [
            {**row, **{name: float(row[name]) if row[name] else None for name in METRICS}}
            for row in csv.DictReader(stream)
        ]


def joined_rows(found: Mapping[str, Sequence[Row]], published: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row per model, method and protocol.

    Args:
        found: {model: rows of its metrics.csv}.
        published: {model: {method: {auroc, aupr, fpr95}}}; the protocol of those figures is not known.
    """

    def beside(model: str, method: str) -> Row:
        reference = published.get(model, {}).get(method, {})
        return {f"reference_{name}": reference.get(name) for name in METRICS}

    rows = []
    for model, own in found.items():
        for row in own:
            rows.append(
                {
                    "model": model,
                    "method": row["method"],
                    "protocol": row["protocol"],
                    **{name: row[name] for name in METRICS},
                    **beside(model, row["method"]),
                }
            )
    measured = {(row["model"], row["method"]) for row in rows}
    for model, methods in published.items():
        for method in methods:
            if (model, method) not in measured:
                known = {**dict.fromkeys(METRICS), **beside(model, method)}
                rows.append({"model": model, "method": method, "protocol": "not measured", **known})
    return rows


JOINED = (
    "per_image: mean over the images that hold both kinds; pooled: all pixels together. The two are not comparable. "
    "Which of them the published figures (reference_*) are is not known."
)


def write_joined(
    found: Mapping[str, Sequence[Row]], published: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[Row]:
    """anomaly.csv and anomaly.png (`joined_rows`, `draw_table`); returns the rows."""
    rows = joined_rows(found, published)
    write_csv(folder / "anomaly.csv", list(rows[0]), rows)
    draw_table(rows, folder / "anomaly.png")
    return rows


def draw_table(rows: Sequence[Row], path: Path) -> None:
    """Grouped bars per protocol and metric: a group per model, a bar per method, published figures as crosses."""
    measured = [row for row in rows if row["auroc"] is not None]
    protocols = list(dict.fromkeys(row["protocol"] for row in measured))
    models = list(dict.fromkeys(row["model"] for row in measured))
    methods = list(dict.fromkeys(row["method"] for row in measured))
    if not measured:
        return
    figure = new_figure(max(9.0, 2.2 * len(models) + 3), 3.2 * len(protocols))
    axes = figure.subplots(len(protocols), len(METRICS), squeeze=False)
    width = 0.8 / len(methods)
    for line, protocol in zip(axes, protocols, strict=True):
        own = {(row["model"], row["method"]): row for row in measured if row["protocol"] == protocol}
        for axis, metric in zip(line, METRICS, strict=True):
            for number, method in enumerate(methods):
                places = np.arange(len(models)) + (number - (len(methods) - 1) / 2) * width
                cells = [own.get((model, method), {}) for model in models]
                values = [np.nan if cell.get(metric) is None else cell[metric] for cell in cells]
                axis.bar(places, values, width, label=method)
                known = [cell.get(f"reference_{metric}") for cell in cells]
                crosses = [(place, value) for place, value in zip(places, known, strict=True) if value is not None]
                if crosses:
                    axis.plot(*zip(*crosses, strict=True), marker="x", linestyle="none", color="black")
            axis.set_xticks(range(len(models)), models, rotation=20, ha="right", fontsize="x-small")
            axis.set(title=f"{_TITLES[metric]}, {protocol.replace('_', ' ')}", ylim=(0, None))
            axis.title.set_fontsize("small")
            axis.grid(axis="y", alpha=0.3)
    axes[0][-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save_figure(figure, path)
