"""`evaluate --compare-inference`: what other ways of asking the same model are worth, and which one is best.

Everything is chosen on half A of the split (`halves`) and reported on half B: the difference of each row to argmax on
the same images, with a bootstrap interval whose level, like the p value, is adjusted for the number of rows (Holm).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.sampler import rank_indices
from segformer_spark.errors import UserError
from segformer_spark.evaluation.decision import ARGMAX
from segformer_spark.evaluation.halves import Halves, cut_in_halves
from segformer_spark.evaluation.judged_rows import Comparison, Row, judged
from segformer_spark.evaluation.postprocessing import Postprocessing
from segformer_spark.evaluation.session import Session
from segformer_spark.evaluation.tuning import Sampler, Samples, joined, tuned
from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.run.console import logger, progress

AREAS, HOLES = (0.0005, 0.002), (0.0005, 0.002)
DEFAULT_TTA = ("hflip", "flips", "turns", "scales")
TIME_LIMIT = 1.1
"""A decision is chosen among rows that take at most this multiple of argmax's time per image."""


@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Attributes:
        group_by: a rule of `data.grouping`, for halves and bootstrap; None as the data set is.
        tta: augmentations to try.
        windows: sides of sliding windows at native size to try, with Gaussian weights.
        time_limit: a saved decision takes at most this multiple of argmax's time.
        seed: of the bootstrap.
    """

    group_by: str | None = None
    tta: Sequence[str] = DEFAULT_TTA
    windows: Sequence[int] = ()
    time_limit: float = TIME_LIMIT
    seed: int = 0


def compare_inference(session: Session, options: CompareOptions) -> Comparison:
    """Try decisions, augmentations, windows and postprocessing on the session's labelled split. Collective.

    Raises:
        UserError: the split cannot be halved, or what is compared goes not together with this model.
    """
    session.refuse_several("--compare-inference")
    dataset, group = session.labelled(), session.group
    halves = group.on_main(lambda: cut_in_halves(dataset, options.group_by))
    names = session.card.class_names
    if group.is_main:
        logger.info("chosen on %d images, judged on %d: %s", len(halves.chosen_on), len(halves.judged_on), halves.rule)
    samples = _samples(session, halves)
    found = group.on_main(lambda: tuned(samples[0]))
    best = found["expected IoU, T by score, factors"]
    constants = found["constants"]
    base = [Row("argmax", "none", {}, ARGMAX), *(Row(name, "none", {}, one) for name, one in found.items())]
    for ranked in ("expected IoU, T by score, factors", "constants"):
        base += [
            Row(f"{ranked}, {what}", "none", {}, replace(found[ranked], postprocessing=corrections))
            for what, corrections in _corrections(names, session.card.background)
        ]
    ways: list[tuple[str, str, dict[str, Any]]] = [(tta, tta, {}) for tta in options.tta]
    ways += [(f"windows of {side}", "none", _window(side)) for side in options.windows]
    rows = _measured(session, base)
    for what, tta, view in ways:
        try:
            asked = _asking(session, tta, view)
        except UserError as error:
            logger.warning("%s is left out: %s", what, error)
            continue
        more = [
            Row(what, tta, view, ARGMAX),
            Row(f"{what}, constants", tta, view, constants),
            Row(f"{what}, expected IoU", tta, view, best),
        ]
        rows += _measured(asked, more)
    per_image = np.stack([counts.per_image.cpu().numpy() for _, counts in rows])
    return judged(
        *([row for row, _ in rows], per_image, names, halves), seed=options.seed, time_limit=options.time_limit
    )


def _window(side: int) -> dict[str, Any]:
    return {"resize": "native", "window": side, "window_weights": "gaussian"}


def _corrections(names: Sequence[str], background: int | None) -> list[tuple[str, Postprocessing]]:
    out = [(f"parts of {100 * area:g} % of the image at least", Postprocessing(min_area=area)) for area in AREAS]
    if background is not None:
        out += [(f"holes to {100 * area:g} % filled", Postprocessing(max_hole=area)) for area in HOLES]
        foreground = tuple(index for index in range(len(names)) if index != background)
        if len(foreground) <= 5:
            out += [(f"largest part of {names[index]}", Postprocessing((index,))) for index in foreground]
        out.append(("small parts and holes", Postprocessing(min_area=AREAS[0], max_hole=HOLES[0])))
    return out


def _samples(session: Session, halves: Halves) -> list[Samples]:
    """Logits of half A, on rank 0; nothing elsewhere."""
    group = session.group
    own = [int(halves.chosen_on[at]) for at in rank_indices(len(halves.chosen_on), group.rank, group.world_size)]
    sampler = Sampler(len(halves.chosen_on), session.card.class_names, IGNORE_INDEX)
    with group.sharing_errors():
        found = session.predictor.shown_logits(session.items(own))
        for _, logits, mask in progress(found, total=len(own), label="collecting logits", visible=group.is_main):
            sampler.add(logits, mask)
    parts = group.gather((own, sampler.parts()))
    if not group.is_main:
        return []
    by_index = {index: part for indices, some in parts for index, part in zip(indices, some, strict=True)}
    return [joined([by_index[index] for index in sorted(by_index)], session.card.class_names)]


def _asking(session: Session, tta: str, view: Mapping[str, Any]) -> Session:
    settings = replace(session.settings, tta=tta, view={**session.settings.view, **view})
    return session.asked(settings)


def _measured(session: Session, rows: Sequence[Row]) -> list[tuple[Row, EvaluationCounts]]:
    """Every row with its counts over the whole split; the model is asked once for all of them."""
    dataset, group = session.labelled(), session.group
    zeros = [EvaluationCounts.zeros(len(dataset), len(dataset.classes), 0, group.device) for _ in rows]
    spent = torch.zeros(len(rows) + 1, dtype=torch.float64)
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    label = f"comparing {rows[0].name}"
    with group.sharing_errors():
        found = session.predictor.decided_in_turn(session.items(indices), [row.decision for row in rows])
        began, waited = time.perf_counter(), 0.0
        for item, ids, seconds in progress(found, total=len(indices), label=label, visible=group.is_main):
            paused = time.perf_counter()
            assert item.mask is not None
            truth = torch.from_numpy(item.mask).to(group.device)
            for counts, one in zip(zeros, ids, strict=True):
                counts.add(item.index, 0, one, truth, IGNORE_INDEX)
            spent[1:] += torch.tensor(seconds, dtype=torch.float64)
            waited += time.perf_counter() - paused
        spent[0] = time.perf_counter() - began - waited - spent[1:].sum()
    spent = group.sum(spent.to(group.device)).cpu() / len(dataset)
    return [
        (replace(row, seconds=float(spent[0] + spent[number + 1])), counts.reduce(group.sum))
        for number, (row, counts) in enumerate(zip(rows, zeros, strict=True))
    ]
