"""Figures of a comparison and of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer_spark.run.figures import new_figure, save_figure
from segformer_spark.study.collect import RunResult
from segformer_spark.study.comparison import by_candidate
from segformer_spark.study.statistics import Interval, Paired, over_seeds, pareto_front

_COLORS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:olive",
    "tab:cyan",
)
_BAR_ALPHA = 0.55

CURVES = "Losses and mIoU against the epoch; dashed: validation loss, and mIoU on training images"
"""Caption of `draw_curves`."""


def draw_curves(results: Sequence[RunResult], path: Path) -> None:
    """Losses and mIoU against the epoch, a line per run; seeds of one model share a colour.

    Solid is the training loss and mIoU on validation images; dashed is the validation loss and, where it was measured,
    mIoU on training images.
    """
    groups = by_candidate(results)
    data_sets = list(dict.fromkeys(data for data, _ in groups))
    figure = new_figure(11, 3.8 * len(data_sets))
    axes = figure.subplots(len(data_sets), 2, squeeze=False)
    for row, data in enumerate(data_sets):
        loss, miou = axes[row]
        for number, (label, group) in enumerate((label, g) for (own, label), g in groups.items() if own == data):
            style: dict[str, Any] = {"color": _COLORS[number % len(_COLORS)], "linewidth": 1.3}
            for seed, result in enumerate(group):
                shown = label if seed == 0 else None
                epochs = [result.epoch_of(one["step"]) for one in result.training]
                loss.plot(epochs, [one["loss"] for one in result.training], label=shown, **style)
                for axis, key, extra in (
                    (loss, "val_loss", {"linestyle": "--", "alpha": 0.7}),
                    (miou, "miou", {"marker": ".", "label": shown}),
                    (miou, "train_miou", {"linestyle": "--", "alpha": 0.7}),
                ):
                    points = [
                        (result.epoch_of(one["step"]), one[key])
                        for one in result.validations
                        if one.get(key) is not None
                    ]
                    if points:
                        axis.plot(*zip(*points, strict=True), **style, **extra)
        loss.set(title=f"{data}: loss, dashed on validation images", xlabel="epoch", ylim=(0, None))
        miou.set(title=f"{data}: mIoU, dashed on training images", xlabel="epoch", ylim=(0, None))
        for axis in (loss, miou):
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize="small")
    save_figure(figure, path)


def draw_tradeoffs(results: Sequence[RunResult], path: Path) -> None:
    """mIoU against parameters, multiply-adds and training speed; the Pareto front is drawn through."""
    costs = {
        "million parameters": lambda one: one.size.total_params / 1e6,
        "billion multiply-adds as run": lambda one: one.size.macs_merged / 1e9,
        "images per second in training": lambda one: one.images_per_second,
    }
    groups = by_candidate(results)
    data_sets = list(dict.fromkeys(data for data, _ in groups))
    figure = new_figure(13, 4.2 * len(data_sets))
    axes = figure.subplots(len(data_sets), 3, squeeze=False)
    for row, data in enumerate(data_sets):
        own = [(label, group) for (name, label), group in groups.items() if name == data]
        for axis, (title, cost) in zip(axes[row], costs.items(), strict=True):
            _tradeoff(axis, own, cost, higher_is_better="second" in title)
            axis.set(title=data, xlabel=title, ylabel="mIoU, void left out")
    save_figure(figure, path)


def _tradeoff(axis: Any, groups: Sequence[tuple[str, list[RunResult]]], cost: Any, *, higher_is_better: bool) -> None:
    points: list[tuple[float, float]] = []
    for number, (label, group) in enumerate(groups):
        known = [result.miou for result in group if result.miou is not None]
        values = [cost(result) for result in group if cost(result) is not None]
        if not known or not values:
            continue
        interval = over_seeds(known)
        points.append((float(np.mean(values)), interval.mean))
        spread = [[interval.mean - min(known)], [max(known) - interval.mean]]
        color = _COLORS[number % len(_COLORS)]
        axis.errorbar(*points[-1], yerr=spread, marker="o", capsize=3, color=color, linestyle="none", label=label)
    front = pareto_front(points, higher_cost_is_better=higher_is_better)
    axis.plot(
        *zip(*(points[position] for position in front), strict=True), color="0.5", linewidth=1, linestyle="--", zorder=0
    )
    axis.grid(alpha=0.3)
    axis.margins(0.12)
    axis.legend(fontsize="x-small", title="dashed: Pareto front", title_fontsize="x-small")


def draw_resolution(results: Sequence[RunResult], path: Path) -> None:
    """mIoU, training time, and time times memory against the pixels of the input."""
    quantities = {
        "mIoU, void left out": lambda one: one.miou,
        "hours of one device": lambda one: one.device_hours or None,
        "hours x peak memory in GiB": lambda one: (one.device_hours * (one.peak_memory_mb or 0) / 1024) or None,
    }
    figure = new_figure(13, 4.2)
    axes = figure.subplots(1, len(quantities))
    for axis, (title, quantity) in zip(axes, quantities.items(), strict=True):
        for number, ((_, label), group) in enumerate(by_candidate(results).items()):
            height, width = group[0].config.data.input_size
            known = [value for value in map(quantity, group) if value is not None]
            if known:
                style = {"color": _COLORS[number % len(_COLORS)], "marker": "o", "linestyle": "none"}
                axis.plot([height * width / 1e6] * len(known), known, label=label, **style)
        axis.margins(0.15)
        axis.set(xlabel="million pixels of the input", ylabel=title, ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small")
    save_figure(figure, path)


def draw_pairs(pairs: Mapping[str, Sequence[Paired]], path: Path) -> None:
    """Differences of per-image mIoU of all pairs, with their 95 % bootstrap intervals."""
    number = sum(len(own) for own in pairs.values())
    figure = new_figure(8.5, max(2.0, 0.34 * number + 0.9 * len(pairs)))
    axes = figure.subplots(len(pairs), 1, squeeze=False, height_ratios=[max(1, len(own)) for own in pairs.values()])
    for axis, (data, own) in zip(axes[:, 0], pairs.items(), strict=True):
        for position, pair in enumerate(own):
            low, high = (pair.difference if bound is None else bound for bound in (pair.low, pair.high))
            sure = pair.p_adjusted is not None and pair.p_adjusted < 0.05
            color = "tab:blue" if sure else "0.6"
            axis.plot([low, high], [position, position], color=color)
            axis.plot(pair.difference, position, marker="o", color=color)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_yticks(range(len(own)), [f"{pair.first} - {pair.second}" for pair in own], fontsize="small")
        axis.invert_yaxis()
        axis.set(title=f"{data}: difference of per-image mIoU, void left out; blue: p < 0.05 after Holm's adjustment")
        axis.title.set_fontsize("small")
        axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def draw_ablation(found: Mapping[str, tuple[Sequence[float], Interval]], path: Path) -> None:
    """A bar per recipe: mean difference to the first one, its 95 % interval over seeds, and each seed as a dot."""
    figure = new_figure(max(5.0, 1.1 * len(found) + 1.5), 3.8)
    axis = figure.subplots()
    positions = range(len(found))
    for position, (values, interval) in zip(positions, found.values(), strict=True):
        axis.bar(position, interval.mean, color="tab:blue", alpha=_BAR_ALPHA)
        if interval.low is not None and interval.high is not None:
            error = [[interval.mean - interval.low], [interval.high - interval.mean]]
            axis.errorbar(position, interval.mean, yerr=error, color="black", capsize=4, linestyle="none")
        axis.plot([position] * len(values), values, marker="o", linestyle="none", color="tab:orange", markersize=4)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xticks(
        list(positions), list(found), rotation=25 if len(found) > 4 else 0, ha="right" if len(found) > 4 else "center"
    )
    seeds = max((interval.count for _, interval in found.values()), default=0)
    many = "bars: mean and 95 % interval, dots: seeds" if seeds > 1 else "one seed: no interval"
    axis.set(ylabel=f"mIoU (void left out) against {next(iter(found))}", title=many)
    axis.title.set_fontsize("small")
    axis.grid(axis="y", alpha=0.3)
    save_figure(figure, path)
