"""The tables of a comparison: a row per run, a row per model over its seeds, a row per pair of models."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from segformer_spark.config.image_size import size_text
from segformer_spark.config.study import REFERENCE_METRICS, Study, reference_of
from segformer_spark.data.readers.pairs import former_id
from segformer_spark.models.registry import encoder_of, find_architecture
from segformer_spark.run.console import logger
from segformer_spark.study.collect import RunResult
from segformer_spark.study.statistics import Paired, over_seeds, paired_differences

Row = dict[str, Any]


def run_rows(study: Study, results: Sequence[RunResult]) -> list[Row]:
    """comparison.csv: one row per run."""
    return [_run_row(study, result, _gains(study, result, results)) for result in results]


def _gains(study: Study, result: RunResult, results: Sequence[RunResult]) -> Row:
    """mIoU and time against the baseline's run on the same data, of the same recipe and seed; empty without one."""
    if study.baseline is None:
        return {}
    run = result.run
    alike = (run.data, run.recipe, run.seed)
    found = [one for one in results if (one.run.data, one.run.recipe, one.run.seed) == alike]
    first = next((one for one in found if one.run.model == study.baseline), None)
    gain = percent = time = None
    if first is not None and first.miou is not None and result.miou is not None:
        gain = result.miou - first.miou
        percent = 100 * gain / first.miou if first.miou else None
    if first is not None and first.device_hours and result.device == first.device:
        time = result.device_hours / first.device_hours
    return {"gain": _rounded(gain), "gain_percent": _rounded(percent, 2), "relative_time": _rounded(time, 3)}


def reference_rows(study: Study) -> list[Row]:
    """What was published of each model or recipe, with its gain over the baseline's."""
    base = study.reference.get(study.baseline or "", {}).get("val_miou")
    rows = []
    for name, published in study.reference.items():
        miou = published.get("val_miou")
        gain = None if base is None or miou is None else miou - base
        rows.append(
            {
                "name": name,
                **{key: published.get(key) for key in REFERENCE_METRICS},
                "gain": _rounded(gain),
                "gain_percent": None if gain is None else _rounded(100 * gain / base, 2),
                "note": published.get("note"),
            }
        )
    return rows


def _run_row(study: Study, result: RunResult, gains: Row) -> Row:
    run, config, size = result.run, result.config, result.size
    scores = result.main_scores
    row: Row = {
        "model": run.model,
        "data": run.data or config.data.dataset,
        "recipe": run.recipe,
        "seed": run.seed,
        "global_batch": result.global_batch,
        "library": find_architecture(config.model).library,
        "encoder": encoder_of(config.model),
        "pretrained": _source(config.model.pretrained),
        "params_total": size.total_params,
        "params_encoder": size.encoder_params,
        "params_head": size.head_params,
        "epochs": round(result.epoch_of(result.training[-1]["step"]), 2) if result.training else 0,
        "best_epoch": round(result.epoch_of(result.model_step), 2),
        "val_miou": _rounded(scores["miou"]),
        "val_miou_void_as_error": _rounded(scores.get("miou_void_as_error")),
        "val_pixel_acc": _rounded(scores["pixel_accuracy"]),
    }
    for split, metrics in list(result.scores.items())[1:]:
        row[f"{split}_miou"] = _rounded(metrics["miou"])
    last = result.validations[-1] if result.validations else {}
    return {
        **row,
        "miou_at_epoch_10": _rounded(result.miou_at_epoch(10)),
        "last_val_miou": _rounded(last.get("miou")),
        "last_train_loss": _rounded(result.training[-1]["loss"]) if result.training else None,
        "last_val_loss": _rounded(last.get("val_loss")),
        "last_train_subset_miou": _rounded(last.get("train_miou")),
        **gains,
        "seconds": _rounded(result.seconds, 1),
        "device_hours": _rounded(result.device_hours, 4),
        "device": result.device,
        "s_per_epoch": _rounded(statistics.median(result.seconds_per_epoch), 2) if result.seconds_per_epoch else None,
        "images_per_s": _rounded(result.images_per_second, 3),
        "peak_memory_mb": _rounded(result.peak_memory_mb, 1),
        "macs": size.macs,
        "macs_merged": size.macs_merged,
        "image_size": size_text(config.data.image_size),
        **{f"reference_{key}": reference_of(study, run).get(key) for key in REFERENCE_METRICS},
        "run": run.name,
    }


def summary_rows(study: Study, results: Sequence[RunResult]) -> list[Row]:
    """summary.csv: one row per data set, model and recipe, over the seeds."""
    rows = []
    for (data, label), group in by_candidate(results).items():
        known = [result.miou for result in group if result.miou is not None]
        interval = over_seeds(known) if known else None
        run = group[0].run
        reference = reference_of(study, run)
        rows.append(
            {
                "data": data,
                "model": label,
                "seeds": len(group),
                "val_miou": _rounded(interval.mean) if interval else None,
                # A mean over seeds knows no bounds, a score does.
                "low": _within_scores(interval.low) if interval else None,
                "high": _within_scores(interval.high) if interval else None,
                **_means_of_other_splits(group),
                "params_total": group[0].size.total_params,
                "macs_merged": group[0].size.macs_merged,
                **{f"reference_{key}": reference.get(key) for key in (*REFERENCE_METRICS, "note")},
            }
        )
    return rows


def _within_scores(value: float | None) -> float | None:
    return None if value is None else _rounded(min(1.0, max(0.0, value)))


def _means_of_other_splits(group: Sequence[RunResult]) -> Row:
    """{split_miou: mean over the seeds} of the splits that are not compared."""
    means = {}
    for split in list(group[0].scores)[1:]:
        known = [one.scores[split]["miou"] for one in group if one.scores[split]["miou"] is not None]
        means[f"{split}_miou"] = _rounded(statistics.fmean(known)) if known else None
    return means


def paired_rows(pairs: Mapping[str, Sequence[Paired]]) -> list[Row]:
    """paired.csv: one row per data set and pair of models."""
    return [
        # Significant digits: p may be very small.
        {"data": data, **{key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in pair.__dict__.items()}}
        for data, own in pairs.items()
        for pair in own
    ]


def pairs_by_data(results: Sequence[RunResult]) -> dict[str, list[Paired]]:
    """{data set: all pairs of its models}, each image's score averaged over the seeds."""
    tables: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    groups = by_candidate(results)
    for data in dict.fromkeys(data for data, _ in groups):
        own = {label: group for (name, label), group in groups.items() if name == data}
        aligned = iter(_with_equal_ids([result.per_image for group in own.values() for result in group]))
        for label, group in own.items():
            scores = [next(aligned) for _ in group]
            shared = set.intersection(*map(set, scores))
            tables[data][label] = {
                image: statistics.fmean(one[image] for one in scores) for image in scores[0] if image in shared
            }
    return {data: paired_differences(scores) for data, scores in tables.items()}


def _with_equal_ids(tables: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Scores by image under ids that go together; those of version 0.1 had `former_id` of today's.

    Ids that are equal under the former rule tell nothing about which image they are of, and are left out.
    """
    equal = len({frozenset(table) for table in tables}) == 1
    if equal or all(former_id(image) == image for table in tables for image in table):
        return list(tables)
    former = [Counter(former_id(image) for image in table) for table in tables]
    ambiguous = {image for counts in former for image, number in counts.items() if number > 1}
    logger.info(
        "the results differ in their images or in the version that named them: paired by the ids of version 0.1%s",
        f", without {len(ambiguous)} that several images had" if ambiguous else "",
    )
    return [
        {former_id(image): score for image, score in table.items() if former_id(image) not in ambiguous}
        for table in tables
    ]


def by_candidate(results: Sequence[RunResult]) -> dict[tuple[str, str], list[RunResult]]:
    """{(data set, model and recipe): the runs of its seeds}, in the study's order."""
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        key = (result.run.data or result.config.data.dataset, result.run.label)
        groups.setdefault(key, []).append(result)
    return groups


def _source(pretrained: str) -> str:
    """Without folders: tables carry no machine's paths."""
    return pretrained.rstrip("/").rpartition("/")[2]


def _rounded(value: Any, digits: int = 6) -> float | None:
    return None if value is None else round(float(value), digits)
