"""`anomaly eval`: how well scores detect the anomalies of a test split.

Two protocols, which are not comparable. per_image: AUROC, AUPR and FPR at 95 % recall of each image that holds both
kinds, then their mean, as the CAOS benchmark has it (Hendrycks et al. 2022). pooled: of all pixels together, by a
histogram of float16 scores. Every pixel counts; scores are made from logits at native size, and those of features on
the model's own grid, then enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer_spark.anomaly.features import MapScore
from segformer_spark.anomaly.figures import draw_curves, score_picture
from segformer_spark.anomaly.operating_points import Halves, OperatingPoints, operating_point_rows
from segformer_spark.anomaly.scores import Score
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.orientation import turn_upright
from segformer_spark.data.png import write_png
from segformer_spark.data.sampler import rank_indices
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import DataError
from segformer_spark.evaluation.pictures import make_panel
from segformer_spark.evaluation.session import Session
from segformer_spark.files.atomic import remove_file, write_csv, write_json
from segformer_spark.metrics.ranking import Ranking, ScoreHistogram, rank
from segformer_spark.ops.interpolation import enlarged_bands
from segformer_spark.run.console import logger, progress

RECALL = 0.95
PROTOCOLS = ("per_image", "pooled")
_CURVE_POINTS = 500

Row = dict[str, Any]


@runtime_checkable
class HasAnomalies(Protocol):
    """A data set that knows its anomalous pixels."""

    def anomalies(self, index: int) -> NDArray[np.bool_]: ...


class AnomalyDataset(SegmentationDataset, HasAnomalies, Protocol):
    """A data set with labels and anomalies."""


@dataclass(frozen=True)
class MethodResult:
    """One score's metrics.

    Attributes:
        per_image: rankings' AUROC, average precision and FPR (n, 3) of the images with both kinds.
        pooled: of all pixels.
        num_images: images in all.
        fitted, judged: of the pixels of each half (`operating_points.Halves`); None without halves.
    """

    per_image: NDArray[np.float64]
    pooled: Ranking
    num_images: int
    fitted: Ranking | None = None
    judged: Ranking | None = None


def evaluate_scores(
    session: Session,
    scores: Mapping[str, Score],
    map_scores: Mapping[str, MapScore] | None = None,
    *,
    panels: Path,
    num_panels: int,
    halves: Halves | None = None,
) -> dict[str, MethodResult]:
    """Score every pixel of the session's split by every method. Collective; the first images' panels go into `panels`.

    Args:
        scores: methods that need logits alone.
        map_scores: methods that need features, too.
        halves: of the split, for operating points.

    Raises:
        DataError: the data set has no labels of anomalies, or no anomaly; before anything is scored.
    """
    group = session.group
    dataset = anomalous(session.labelled(), group)
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    map_scores = map_scores or {}
    methods = [*scores, *map_scores]
    pooled = {name: ScoreHistogram.empty(group.device) for name in methods}
    judged = {name: ScoreHistogram.empty(group.device) for name in methods}
    single: dict[str, list[tuple[int, float, float, float]]] = {name: [] for name in methods}
    items = _logits_and_maps(session, indices, with_maps=bool(map_scores))
    with group.sharing_errors():
        for item, logits, features in progress(items, total=len(indices), label="scoring", visible=group.is_main):
            truth = dataset.anomalies(item.index)
            maps, ids = _score_maps(logits, features, item.size, scores, map_scores)
            _refuse_nan(maps, dataset.sample_id(item.index))
            for name, values in maps.items():
                own = judged if halves is not None and halves.is_judged[item.index] else pooled
                own[name].add(values, torch.from_numpy(truth).to(values.device))
                ranking = rank(values.cpu().numpy(), truth)
                if ranking.is_defined:
                    single[name].append((item.index, *_rates(ranking)))
            if item.index < num_panels:
                _draw_panels(dataset, item.index, maps, ids, panels)
    results = {}
    for name in methods:
        rows = sorted(row for part in group.gather(single[name]) for row in part)
        table = np.array([row[1:] for row in rows], np.float64).reshape(-1, 3)
        first, second = (one[name].reduce(group.sum) for one in (pooled, judged))
        parts = (None, None) if halves is None else (first.ranking(), second.ranking())
        whole = ScoreHistogram(first.counts + second.counts).ranking()
        results[name] = MethodResult(table, whole, len(dataset), *parts)
    return results


def anomalous(dataset: SegmentationDataset, group: Group) -> AnomalyDataset:
    """The data set, which has anomalies. Collective.

    Raises:
        DataError: it has no labels of anomalies, or no anomaly.
    """
    if not isinstance(dataset, HasAnomalies):
        raise DataError("anomaly eval: this data set has no labels of anomalies; street_hazards has them")
    if not group.on_main(lambda: _has_anomalies(dataset)):
        raise DataError(
            "anomaly eval: no image of this split has an anomaly, so that nothing can be detected",
            "Take the test split of street_hazards: --split test.",
        )
    return cast(AnomalyDataset, dataset)


def _has_anomalies(dataset: Any) -> bool:
    return any(bool(dataset.anomalies(index).any()) for index in range(len(dataset)))


def negative_rankings(
    session: Session, scores: Mapping[str, Score], map_scores: Mapping[str, MapScore]
) -> dict[str, Ranking]:
    """Every method's scores on a split without anomalies, pooled. Collective.

    Raises:
        DataError: it has anomalies.
    """
    dataset, group = session.labelled(), session.group
    if isinstance(dataset, HasAnomalies) and group.on_main(lambda: _has_anomalies(dataset)):
        raise DataError(
            "--fpr-split: this split has anomalies, which would count as normal pixels; take another, such as val"
        )
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    found = {name: ScoreHistogram.empty(group.device) for name in (*scores, *map_scores)}
    with group.sharing_errors():
        for item, logits, features in progress(
            _logits_and_maps(session, indices, with_maps=bool(map_scores)),
            total=len(indices),
            label="scoring",
            visible=group.is_main,
        ):
            maps, _ = _score_maps(logits, features, item.size, scores, map_scores)
            _refuse_nan(maps, dataset.sample_id(item.index))
            for name, values in maps.items():
                found[name].add(values, torch.zeros(values.shape, dtype=torch.bool, device=values.device))
    return {name: one.reduce(group.sum).ranking() for name, one in found.items()}


def _refuse_nan(maps: Mapping[str, Tensor], image: str) -> None:
    for name, values in maps.items():
        if bool(values.isnan().any()):
            raise DataError(f"{image}: {name} is not a number; try another precision")


def _logits_and_maps(
    session: Session, indices: Sequence[int], *, with_maps: bool
) -> Iterator[tuple[EvalItem, Tensor, Tensor | None]]:
    batches = session.items(indices)
    if with_maps:
        yield from session.predictor.maps(batches)
    else:
        yield from ((item, logits, None) for item, logits in session.logits(batches))


def _rates(ranking: Ranking) -> tuple[float, float, float]:
    auroc, precision, fpr = ranking.auroc(), ranking.average_precision(), ranking.fpr_at(RECALL)
    assert auroc is not None
    assert precision is not None
    assert fpr is not None
    return auroc, precision, fpr


def _score_maps(
    logits: Tensor,
    features: Tensor | None,
    size: tuple[int, int],
    scores: Mapping[str, Score],
    map_scores: Mapping[str, MapScore],
) -> tuple[dict[str, Tensor], NDArray[np.uint8]]:
    """Every method's scores (H, W) at native size, and the predicted class ids."""
    with torch.inference_mode():
        maps = {name: torch.empty(size, device=logits.device) for name in scores}
        ids = torch.empty(size, dtype=torch.uint8, device=logits.device)
        for rows, band in enlarged_bands(logits, size):
            ids[rows] = band.argmax(0).to(torch.uint8)
            for name, score in scores.items():
                maps[name][rows] = score(band)
    if features is not None:
        maps |= {name: _enlarged(score(logits, features), size) for name, score in map_scores.items()}
    return maps, ids.cpu().numpy()


def _enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (h, w) on the model's grid, at native size; one that is no number spreads over all."""
    if bool(scores.isnan().any()):
        return torch.full(size, torch.nan, device=scores.device)
    return torch.cat([band[0] for _, band in enlarged_bands(scores[None], size)])


def _draw_panels(
    dataset: SegmentationDataset, index: int, maps: Mapping[str, Tensor], ids: NDArray[np.uint8], folder: Path
) -> None:
    sample, name = dataset.load(index), dataset.sample_id(index)
    image, truth, predicted = (turn_upright(pixels, sample.orientation) for pixels in (sample.image, sample.mask, ids))
    for method, values in maps.items():
        score = turn_upright(score_picture(values.cpu().numpy()), sample.orientation)
        panel = make_panel(image, truth, predicted, dataset.classes, name, more={"Score": score})
        write_png(folder / method / f"{name}.png", panel)


def write_results(
    results: Mapping[str, MethodResult],
    model: str,
    output: Path,
    record: Mapping[str, Any],
    points: OperatingPoints | None = None,
) -> list[Row]:
    """metrics.csv, thresholds.csv, curves.png, results.json with the record and, with points, operating_points.csv;
    returns the rows of the first."""
    rows = [row for method, result in results.items() for row in _metric_rows(model, method, result)]
    write_csv(output / "metrics.csv", list(rows[0]), rows)
    curves = [row for method, result in results.items() for row in _threshold_rows(method, result.pooled)]
    write_csv(output / "thresholds.csv", list(curves[0]), curves)
    remove_file(output / "operating_points.csv")
    fitted = {method: one.fitted for method, one in results.items() if one.fitted is not None}
    judged = {method: one.judged for method, one in results.items() if one.judged is not None}
    if points is not None and all(one.is_defined for one in (*fitted.values(), *judged.values())):
        chosen = list(operating_point_rows(fitted, judged, points))
        write_csv(output / "operating_points.csv", list(chosen[0]), chosen)
    elif points is not None:
        logger.warning("no operating points: one half of the towns has no anomaly, or nothing else")
    draw_curves({method: result.pooled for method, result in results.items()}, output / "curves.png")
    write_json(output / "results.json", {"metrics": rows, "record": record})
    return rows


def _metric_rows(model: str, method: str, result: MethodResult) -> Iterator[Row]:
    """The threshold is the best one on this very data: an oracle's."""
    pooled = result.pooled
    best = pooled.best
    pixels = pooled.positives + pooled.negatives
    alike = {"n_pixels": pixels, "anomaly_share": round(pooled.positives / pixels, 8)}
    means = result.per_image.mean(0) if len(result.per_image) else [None] * 3
    for protocol, metrics, images in (
        ("per_image", means, len(result.per_image)),
        ("pooled", _rates(pooled), result.num_images),
    ):
        auroc, aupr, fpr95 = (None if value is None else round(float(value), 6) for value in metrics)
        oracle: Sequence[float | None] = [None, None]
        if protocol == "pooled":
            threshold = float(pooled.thresholds[best])
            oracle = [round(float(pooled.f1[best]), 6), threshold if math.isfinite(threshold) else None]
        yield {
            "model": model,
            "method": method,
            "protocol": protocol,
            "auroc": auroc,
            "aupr": aupr,
            "fpr95": fpr95,
            "f1_opt": oracle[0],
            "threshold_opt": oracle[1],
            "n_images": images,
            **alike,
            "threshold_source": None if oracle[0] is None else "oracle",
        }


def _threshold_rows(method: str, ranking: Ranking) -> Iterator[Row]:
    """Evenly spaced thresholds, the last, and the one with the best F1."""
    curves = {
        "threshold": ranking.thresholds,
        "precision": ranking.precision,
        "recall": ranking.recall,
        "f1": ranking.f1,
        "fpr": ranking.false_positive_rate,
    }
    number = len(ranking.thresholds)
    spaced = range(0, number, max(1, number // _CURVE_POINTS))
    for index in sorted({*spaced, ranking.best, number - 1}):
        values = {name: float(curve[index]) for name, curve in curves.items()}
        yield {"method": method, **{k: v if k == "threshold" else round(v, 6) for k, v in values.items()}}
