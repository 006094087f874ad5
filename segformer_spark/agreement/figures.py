"""Figures of an agreement study."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.agreement.correlation import KINDS, THRESHOLDS
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.run.figures import new_figure, save_figure

_NAME_WIDTH = 18


Reference = Mapping[str, Mapping[str, float]]


def draw_sizes(
    results: Sequence[ModelAgreement], size_lines: Mapping[str, str], reference: Reference, path: Path
) -> None:
    """Highest correlation against parameters, with the 95 % interval, and the published ones as crosses; `size_lines`
    say how they go together."""
    figure = new_figure(6.5, 4.0)
    _sizes(figure.subplots(), results, size_lines, reference)
    save_figure(figure, path)


def draw_overview(
    results: Sequence[ModelAgreement], size_lines: Mapping[str, str], reference: Reference, path: Path
) -> None:
    """That plot, a heat map of models and thresholds per kind, and bars."""
    figure = new_figure(11, 7)
    axes = figure.subplots(2, 2)
    _sizes(axes[0, 0], results, size_lines, reference)
    _bars(axes[1, 1], results)
    for axis, kind in zip((axes[0, 1], axes[1, 0]), KINDS, strict=True):
        _heat_map(figure, axis, results, kind)
    save_figure(figure, path)


def _sizes(axis: Any, results: Sequence[ModelAgreement], size_lines: Mapping[str, str], reference: Reference) -> None:
    ordered = sorted(results, key=lambda result: result.parameters)
    for kind, color in zip(KINDS, ("tab:blue", "tab:orange"), strict=True):
        published = [
            (one.parameters / 1e6, reference[one.name][f"max_{kind}"])
            for one in ordered
            if f"max_{kind}" in reference.get(one.name, {})
        ]
        if published:
            style = {"marker": "x", "linestyle": ":", "color": color, "alpha": 0.8}
            axis.plot(*zip(*published, strict=True), label=f"max {kind}, published", **style)
        known = [(one.parameters / 1e6, one.maxima[kind]) for one in ordered if one.maxima[kind].value is not None]
        if not known:
            continue
        sizes = [size for size, _ in known]
        values = np.array([best.value for _, best in known], np.float64)
        bounds = [
            (v if best.low is None else best.low, v if best.high is None else best.high)
            for (_, best), v in zip(known, values, strict=True)
        ]
        low, high = np.array(bounds, np.float64).T
        errors = np.maximum(np.stack([values - low, high - values]), 0)
        axis.errorbar(sizes, values, yerr=errors, marker="o", capsize=3, color=color, label=f"max {kind}")
    for one in ordered:
        heights = [best.value for best in one.maxima.values() if best.value is not None]
        if heights:
            place = (one.parameters / 1e6, max(heights))
            axis.annotate(one.name, place, xytext=(3, 5), textcoords="offset points", fontsize="x-small")
    lines = [f"max {kind}: {size_lines[f'max_{kind}']}" for kind in KINDS]
    axis.set(xlabel="million parameters", ylabel="correlation")
    axis.set_title("\n".join(["agreement with human ratings against size", *lines]), fontsize="small")
    axis.axhline(0, color="0.7", linewidth=0.8)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")


def _heat_map(figure: Any, axis: Any, results: Sequence[ModelAgreement], kind: str) -> None:
    values = [[np.nan if one.value is None else one.value for one in result.by_threshold[kind]] for result in results]
    shown = axis.imshow(
        np.array(values, np.float64), aspect="auto", cmap="coolwarm", vmin=-1, vmax=1, interpolation="nearest"
    )
    marks = range(4, len(THRESHOLDS), 10)
    axis.set_xticks(list(marks), [f"{THRESHOLDS[mark]:g}" for mark in marks])
    axis.set_yticks(range(len(results)), [_wrapped(result.name) for result in results], fontsize="small")
    axis.set(xlabel="threshold of the relative change", title=f"{kind} (empty where undefined)")
    figure.colorbar(shown, ax=axis)


def _bars(axis: Any, results: Sequence[ModelAgreement]) -> None:
    positions = np.arange(len(results))
    for offset, kind in zip((-0.2, 0.2), KINDS, strict=True):
        axis.bar(positions + offset, [result.maxima[kind].value or 0.0 for result in results], 0.4, label=f"max {kind}")
    axis.set_xticks(positions, [_wrapped(result.name) for result in results], rotation=25, ha="right", fontsize="small")
    axis.set(ylabel="correlation", title="maximum over the thresholds")
    axis.margins(y=0.25)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize="small", ncols=2)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name.replace("_", " "), _NAME_WIDTH))
