"""Every metric of an evaluation, from the counts of its images: what results.json holds and `verify` computes anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer_spark.metrics.calibration import PIXELS, expected_calibration_error, reliability
from segformer_spark.metrics.headline import Headline
from segformer_spark.metrics.image_counts import PREDICTED_EDGE, TOLERANCES, TRUE_EDGE, WIDTHS, ImageCounts
from segformer_spark.metrics.image_wise import image_wise
from segformer_spark.metrics.names import is_spark
from segformer_spark.metrics.parts import missing_points
from segformer_spark.metrics.report import report
from segformer_spark.metrics.resampling import image_weights, interval
from segformer_spark.metrics.scores import quotient
from segformer_spark.metrics.spark_score import THRESHOLDS, counts_for_panels, image_iou

PAPER_WIDTH = "2 % of the diagonal"
PANEL_SHARE_EDGES = (0.0, 0.05, 0.1, 0.2, 0.4, 1e9)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Description:
    """What is known of the images besides their counts.

    Attributes:
        class_names, background, colors: of the classes.
        categories: names; empty for none.
        names, category, group: of each image; `group` is what it is drawn with in a bootstrap.
        grouping: that in words.
    """

    class_names: tuple[str, ...]
    background: int | None
    colors: tuple[tuple[int, int, int], ...]
    categories: tuple[str, ...]
    names: tuple[str, ...]
    category: tuple[int, ...]
    group: tuple[str, ...]
    grouping: str

    def take(self, rows: Sequence[int]) -> Description:
        """Of the images at these positions."""
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            category=tuple(self.category[row] for row in rows),
            group=tuple(self.group[row] for row in rows),
        )


def detailed_report(counts: ImageCounts, of: Description) -> dict[str, Any]:
    """The metrics of `metrics.report`, and those that need more than a confusion matrix; JSON-ready."""
    sums = counts.evaluation_counts(of.category, len(of.categories))
    per_image = sums.per_image.numpy()
    out = report(sums, of.category, class_names=of.class_names, background=of.background, categories=of.categories)
    iou = image_iou(per_image, empty=np.nan)
    out |= image_wise(iou)
    out["intervals"] = _intervals(per_image, of)
    out["boundary_iou"] = _boundary_iou(counts, of.class_names)
    out["edges"] = _edges(counts, of.class_names)
    out["calibration"] = _calibration(counts)
    out["missing_points"] = missing_points(counts.cells, counts.alternative, len(counts), of.class_names, of.names)
    if is_spark(of.class_names):
        out["spark_curve"] = _spark_curve(per_image, of.class_names)
        out["spark_readings"] = _spark_readings(per_image, of.class_names)
        out["panel_shares"] = _by_panel_share(per_image, of.class_names)
    return out


def _intervals(per_image: NDArray[np.int64], of: Description) -> dict[str, Any]:
    """95 % percentile intervals of the headline metrics and of every class's IoU."""
    headline = Headline(per_image, of.class_names)
    weights = image_weights(of.group)
    found: dict[str, Any] = {"over": of.grouping, "num_groups": len(set(of.group))}
    if len(set(of.group)) < 2:
        return found
    for name, values in headline.values(weights).items():
        found[name] = _bounds(values)
    iou = headline.class_iou(weights)
    found["iou"] = {name: _bounds(iou[:, c]) for c, name in enumerate(of.class_names)}
    return found


def _bounds(values: Floats) -> list[float] | None:
    found = interval(values)
    return None if found.low is None or found.high is None else [found.low, found.high]


def _boundary_iou(counts: ImageCounts, names: Sequence[str]) -> dict[str, Any]:
    """{width: {"mean", class: IoU of the boundary regions of all images together}}."""
    sums = counts.boundary.sum(0)
    labels = [*(f"{width} px" for width in WIDTHS), PAPER_WIDTH]
    out: dict[str, Any] = {}
    for position, label in enumerate(labels):
        predicted, true, overlap = sums[:, position].T.astype(np.float64)
        out[label] = _with_mean(quotient(overlap, predicted + true - overlap), names)
    return out


def _edges(counts: ImageCounts, names: Sequence[str]) -> dict[str, Any]:
    """Boundary F1 and NSD at every tolerance, and HD95: means over the images in which truth or prediction has an edge
    of the class; HD95 over those in which both have one."""
    predicted, true = counts.edges[:, :, 0, PREDICTED_EDGE], counts.edges[:, :, 0, TRUE_EDGE]
    either, both = (predicted + true) > 0, (predicted > 0) & (true > 0)
    out: dict[str, Any] = {"boundary_f1": {}, "nsd": {}}
    for position, tolerance in enumerate(TOLERANCES):
        first, second = counts.edges[:, :, 1 + position, PREDICTED_EDGE], counts.edges[:, :, 1 + position, TRUE_EDGE]
        precision, recall = _share(first, predicted), _share(second, true)
        f1 = np.where(both, quotient(2 * precision * recall, precision + recall), 0.0)
        f1 = np.where(np.isnan(f1), 0.0, f1)
        nsd = _share(first + second, predicted + true)
        label = f"{tolerance:g}"
        out["boundary_f1"][label] = _with_mean(_class_means(f1, either), names)
        out["nsd"][label] = _with_mean(_class_means(nsd, either), names)
    out["hd95"] = _with_mean(_class_means(np.nan_to_num(counts.hd95), both), names)
    out["num_images"] = {name: int(either[:, c].sum()) for c, name in enumerate(names)}
    out["num_images_hd95"] = {name: int(both[:, c].sum()) for c, name in enumerate(names)}
    return out


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Floats:
    return np.asarray(part / np.maximum(whole, 1))


def _class_means(values: Floats, counted: NDArray[np.bool_]) -> Floats:
    return quotient(np.where(counted, values, 0).sum(0), counted.sum(0).astype(np.float64))


def _with_mean(values: Floats, names: Sequence[str]) -> dict[str, float | None]:
    defined = values[~np.isnan(values)]
    rows: dict[str, float | None] = {"mean": float(defined.mean()) if len(defined) else None}
    return rows | {n: None if np.isnan(v) else float(v) for n, v in zip(names, values, strict=True)}


def _calibration(counts: ImageCounts) -> dict[str, Any] | None:
    sums = counts.calibration.sum(0)
    if not sums[:, PIXELS].any():
        return None
    return {"ece": expected_calibration_error(sums), "bins": reliability(sums)}


def _parts(per_image: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return per_image[:, names.index("body")], per_image[:, names.index("panels")]


def _spark_curve(per_image: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Share of the images above each of the ten thresholds, whose mean is the score."""
    body, panels = _parts(per_image, names)
    counted = counts_for_panels(body, panels)
    return {
        "thresholds": THRESHOLDS.tolist(),
        "body": _above(image_iou(body), strict=True),
        "panels": _above(image_iou(panels)[counted], strict=True),
    }


def _above(iou: Floats, *, strict: bool) -> list[float] | None:
    if not len(iou):
        return None
    above = iou[None] > THRESHOLDS[:, None] if strict else iou[None] >= THRESHOLDS[:, None]
    return [float(share) for share in above.mean(1)]


def _spark_readings(per_image: NDArray[np.int64], names: Sequence[str]) -> dict[str, float | None]:
    """The score under both readings of both open points of its description."""
    body, panels = _parts(per_image, names)
    counted = counts_for_panels(body, panels)
    out: dict[str, float | None] = {}
    for empty in (1.0, 0.0):
        for strict in (True, False):
            shares = [
                _above(image_iou(body, empty), strict=strict),
                _above(image_iou(panels, empty)[counted], strict=strict),
            ]
            means = [float(np.mean(one)) for one in shares if one is not None]
            name = f"IoU {'>' if strict else '>='} t, empty and empty {empty:g}"
            out[name] = float(np.mean(means)) if means else None
    return out


def _by_panel_share(per_image: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """IoU of both parts by the share of true panel pixels among those of the body."""
    body, panels = _parts(per_image, names)
    share = panels[:, 1] / np.maximum(body[:, 1], 1)
    out: dict[str, Any] = {}
    for low, high in itertools.pairwise(PANEL_SHARE_EDGES):
        own = (share >= low) & (share < high)
        if not own.any():
            continue
        label = f"{100 * low:g}-{100 * high:g} %" if high < 1e9 else f"from {100 * low:g} %"
        row: dict[str, Any] = {"num_images": int(own.sum())}
        for name, part in (("body", body), ("panels", panels)):
            iou = image_iou(part[own], empty=np.nan)
            defined = iou[~np.isnan(iou)]
            row[f"iou_{name}"] = float(defined.mean()) if len(defined) else None
        out[label] = row
    return out
