"""`agreement`: several models on pairs of images with human ratings -> tables, figures, a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segformer_spark.agreement.correlation import (
    KINDS,
    Maximum,
    correlate,
    decisions,
    maximum,
)
from segformer_spark.agreement.findings import write_findings
from segformer_spark.agreement.objects import AreaChange, area_change
from segformer_spark.agreement.ratings import Item
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.agreement.tables import result_rows, write_tables
from segformer_spark.data.dataset import Mask
from segformer_spark.data.decode import read_image
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import UserError
from segformer_spark.evaluation.session import InferenceSettings, Session
from segformer_spark.files.atomic import write_json
from segformer_spark.models.segformer import SegFormer
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
    write_tables(results, items, options.reference, options.output)
    sizes = write_findings(results, options.reference, options.output)
    record = result_record(
        group.device,
        started=started,
        models=[str(candidate.folder) for candidate in candidates],
        items=len(items),
        options={**asdict(options), "output": str(options.output)},
    )
    table = result_rows(results, options.reference)
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
