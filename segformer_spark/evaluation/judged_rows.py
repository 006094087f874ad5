"""Ways of asking a model, judged: their scores on half B, gains over argmax with intervals, and the best on half A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.evaluation.decision import Decision
from segformer_spark.evaluation.halves import Halves
from segformer_spark.metrics.headline import Headline
from segformer_spark.metrics.resampling import holm, holm_levels, image_weights, interval, p_value


@dataclass(frozen=True)
class Row:
    """One way of asking.

    Attributes:
        name: for the table.
        tta, view: how the model is shown an image.
        decision: how class ids follow.
        seconds: per image, model and decision together.
        chosen_on, judged_on: {metric: value} on halves A and B.
        gain: on B, of the first metric over argmax; low, high: its interval; p: adjusted.
    """

    name: str
    tta: str
    view: Mapping[str, Any]
    decision: Decision
    seconds: float = 0.0
    chosen_on: Mapping[str, float | None] = field(default_factory=dict)
    judged_on: Mapping[str, float | None] = field(default_factory=dict)
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All rows, argmax first, the halves, the row that a saved decision is made of, and the counts of each row per
    image, (rows, images, classes, 3)."""

    rows: list[Row]
    halves: Halves
    metric: str
    winner: Row
    per_image: NDArray[np.int64]


def judged(
    rows: Sequence[Row],
    per_image: NDArray[np.int64],
    class_names: Sequence[str],
    halves: Halves,
    *,
    seed: int,
    time_limit: float,
) -> Comparison:
    """Fill the rows in and find the best one on half A.

    Args:
        rows: argmax first.
        per_image: (rows, images, classes, 3), as `metrics.confusion.EvaluationCounts.per_image` of each row.
        seed: of the bootstrap.
        time_limit: the best takes at most this multiple of argmax's time.
    """
    names = class_names
    chosen, judged = (
        [Headline(one[half], names) for one in per_image] for half in (halves.chosen_on, halves.judged_on)
    )
    metric = judged[0].names[0]
    weights = image_weights([halves.groups[index] for index in halves.judged_on], seed=seed)
    replicates = [one.values(weights)[metric] for one in judged]
    differences = [one - replicates[0] for one in replicates[1:]]
    p_values = [p_value(one) for one in differences]
    adjusted, levels = holm(p_values), holm_levels(p_values)
    out = [_with_values(rows[0], chosen[0], judged[0])]
    for number, row in enumerate(rows[1:]):
        filled = _with_values(row, chosen[number + 1], judged[number + 1])
        bounds = interval(differences[number], levels[number])
        first, own = out[0].judged_on[metric], filled.judged_on[metric]
        gain = None if first is None or own is None else own - first
        out.append(replace(filled, gain=gain, low=bounds.low, high=bounds.high, p=adjusted[number]))
    return Comparison(out, halves, metric, _winner(out, metric, time_limit), per_image)


def _with_values(row: Row, chosen: Headline, judged: Headline) -> Row:
    values = [{name: one.value(name) for name in one.names} for one in (chosen, judged)]
    return replace(row, chosen_on=values[0], judged_on=values[1])


def _winner(rows: Sequence[Row], metric: str, time_limit: float) -> Row:
    """The row that is best on half A, of those that lower no metric there and take no longer than allowed."""
    plain = rows[0]

    def is_allowed(row: Row) -> bool:
        if row.seconds > time_limit * plain.seconds:
            return False
        return all(
            value is not None and value >= (plain.chosen_on[name] or 0.0) for name, value in row.chosen_on.items()
        )

    allowed = [row for row in rows[1:] if is_allowed(row)]
    best = max(allowed, key=lambda row: row.chosen_on[metric] or 0.0, default=plain)
    return best if (best.chosen_on[metric] or 0.0) > (plain.chosen_on[metric] or 0.0) else plain


def table(comparison: Comparison) -> list[str]:
    """The comparison as aligned lines."""
    plain, metric = comparison.rows[0], comparison.metric
    metrics = list(plain.judged_on)
    width = max(len(row.name) for row in comparison.rows) + 2
    head = "".join(f"{name:>13}" for name in metrics)
    lines = [f"{'on half B':<{width}}{head}{'gain':>8}{'95 % interval, Holm':>22}{'p':>8}{'time':>8}"]
    for row in comparison.rows:
        values = "".join(f"{_percent(row.judged_on[name]):>13}" for name in metrics)
        gain = "" if row.gain is None else f"{100 * row.gain:+.2f}"
        bounds = "" if row.low is None or row.high is None else f"[{100 * row.low:+.2f}, {100 * row.high:+.2f}]"
        p = "" if row.p is None else f"{row.p:.4f}"
        factor = f"{row.seconds / plain.seconds:.2f}" if plain.seconds else ""
        lines.append(f"{row.name:<{width}}{values}{gain:>8}{bounds:>22}{p:>8}{factor:>8}")
    lines.append(f"gain: of {metric}, in points over argmax; time: per image, argmax is 1")
    lines.append(f"best on half A within the time limit: {comparison.winner.name}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def row_record(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    return {
        "name": row.name,
        "tta": row.tta,
        "inference": dict(row.view),
        "rule": row.decision.rule,
        "seconds_per_image": row.seconds,
        "half_a": dict(row.chosen_on),
        "half_b": dict(row.judged_on),
        "gain": row.gain,
        "low": row.low,
        "high": row.high,
        "p_holm": row.p,
    }
