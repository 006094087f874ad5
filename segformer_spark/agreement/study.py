"""`agreement`: several models on pairs of images with human ratings -> tables, figures, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segformer_spark.agreement.correlation import (
    KINDS,
    THRESHOLDS,
    Maximum,
    correlate,
    decisions,
    maximum,
)
from segformer_spark.agreement.figures import draw_overview, draw_sizes
from segformer_spark.agreement.objects import AreaChange, area_change
from segformer_spark.agreement.ratings import Item
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.data.dataset import Mask
from segformer_spark.data.decode import read_image
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.models.segformer import SegFormer
from segformer_spark.run.atomic import write_csv, write_json
from segformer_spark.run.console import logger, progress
from segformer_spark.run.record import result_record
from segformer_spark.run.system import now

Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model of the study: a name for tables, its variant, and its exported folder."""

    name: str
    folder: Path


@dataclass(frozen=True)
class AgreementOptions:
    """How to segment and to test.

    Attributes:
        ignored: names of classes that are no object.
        inference: how the models are asked; always about whole images.
        repeats: permutations for the p of a maximum.
        seed: of permutations and resampling.
        reference: {model: published maxima}, shown beside ours.
    """

    output: Path
    ignored: tuple[str, ...] = ()
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    repeats: int = 10_000
    seed: int = 0
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def run_agreement(
    candidates: Sequence[Candidate], items: Sequence[Item], options: AgreementOptions, group: Group
) -> list[ModelAgreement]:
    """Segment, follow the objects, correlate; write everything.

    Raises:
        UserError: an ignored class that a model does not know.
    """
    started = now()
    results = [_of_model(candidate, items, options, group) for candidate in candidates]
    for result in results:
        write_csv(options.output / result.name / "pairs.csv", _PAIRS, list(_pair_rows(items, result.changes)))
    rows = [row for result in results for row in _threshold_rows(result)]
    write_csv(options.output / "correlation_by_threshold.csv", list(rows[0]), rows)
    table = [_result_row(result, options.reference) for result in results]
    write_csv(options.output / "correlation_results.csv", list(table[0]), table)
    sizes = against_size([r.parameters for r in results], {k: [r.maxima[k].value for r in results] for k in KINDS})
    against = [{"maximum": name, **{k: _rounded(v) for k, v in one.items()}} for name, one in sizes.items()]
    write_csv(options.output / "correlation_vs_parameters.csv", list(against[0]), against)
    size_lines = {name: describe_size(one) for name, one in sizes.items()}
    for name, line in size_lines.items():
        logger.info("parameters against %s: %s", name, line)
    draw_sizes(results, size_lines, options.output / "correlation_vs_parameters.png")
    draw_overview(results, size_lines, options.output / "agreement.png")
    record = result_record(
        group.device,
        started=started,
        models=[str(candidate.folder) for candidate in candidates],
        items=len(items),
        options={**asdict(options), "output": str(options.output)},
    )
    write_json(options.output / "summary.json", {"models": table, "against_parameters": sizes, "record": record})
    return results


def agreement(changes: Sequence[AreaChange], answers: Sequence[float], *, repeats: int, seed: int) -> Row:
    """Correlations of known changes with human ratings: `by_threshold`, `maxima` and `num_items`."""
    known = [
        (change.relative, answer)
        for change, answer in zip(changes, answers, strict=True)
        if change.relative is not None
    ]
    relative, human = [value for value, _ in known], [answer for _, answer in known]
    decided = decisions(relative)
    return {
        "by_threshold": {kind: [correlate(kind, list(row.astype(float)), human) for row in decided] for kind in KINDS},
        "maxima": {kind: maximum(kind, relative, human, repeats=repeats, seed=seed) for kind in KINDS},
        "num_items": len(known),
    }


def against_size(parameters: Sequence[int], maxima: Mapping[str, Sequence[float | None]]) -> Row:
    """Correlation of parameters with maxima over models: r, rho and their p; null where undefined."""
    out: Row = {}
    for kind, values in maxima.items():
        pairs = [(float(count), value) for count, value in zip(parameters, values, strict=True) if value is not None]
        counts, known = [count for count, _ in pairs], [value for _, value in pairs]
        r, rho = correlate("pearson", counts, known), correlate("spearman", counts, known)
        out[f"max_{kind}"] = {"r": r.value, "r_p": r.p, "rho": rho.value, "rho_p": rho.p, "n": len(pairs)}
    return out


def _of_model(candidate: Candidate, items: Sequence[Item], options: AgreementOptions, group: Group) -> ModelAgreement:
    session = Session.open(candidate.folder, replace(options.inference, crops="none"), group)
    model, card = session.model, session.card
    unknown = set(options.ignored) - set(card.class_names)
    if unknown:
        raise UserError(
            f"{candidate.folder}: there is no class {', '.join(sorted(unknown))}; it knows "
            f"{', '.join(card.class_names)}"
        )
    ignored = [card.class_names.index(name) for name in options.ignored]
    files = [path for item in items for path in (item.before, item.after)]
    predicted = session.predictions(session.file_items(files, range(len(files))))
    predictions: list[Mask] = [
        ids.cpu().numpy() for _, ids in progress(predicted, total=len(files), label=candidate.name)
    ]
    decoding = session.loading.decoding
    changes = [
        area_change(
            (read_image(item.before, decoding=decoding), predictions[2 * number]),
            (read_image(item.after, decoding=decoding), predictions[2 * number + 1]),
            ignored,
        )
        for number, item in enumerate(items)
    ]
    found = agreement(changes, [item.share_different for item in items], repeats=options.repeats, seed=options.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    variant = (model.variant or "custom") if isinstance(model, SegFormer) else card.model["encoder"]
    logger.info("%s: %s", candidate.name, describe(found["maxima"], found["num_items"]))
    return ModelAgreement(candidate.name, variant, parameters, changes, **found)


def describe(maxima: Mapping[str, Maximum], num_items: int) -> str:
    """One line for the log."""
    parts = []
    for kind, best in maxima.items():
        if best.value is None:
            parts.append(f"max {kind} undefined")
        else:
            parts.append(f"max {kind} {best.value:.3f} at {best.threshold:.2f} (p of the maximum {best.p:.4f})")
    return f"{', '.join(parts)}, {num_items} items"


def describe_size(row: Row) -> str:
    """r, rho and both p of `against_size` on one line."""
    if row["r"] is None:
        return f"undefined (n {row['n']})"
    return f"r {row['r']:.3f} (p {row['r_p']:.2f}), rho {row['rho']:.3f} (p {row['rho_p']:.2f}), n {row['n']}"


_PAIRS = ["base", "type", "area_before", "area_after", "area_change", "iou_before", "iou_after", "share_different"]


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
