"""Counts of every image of a labelled data set, over all ranks; continues where it was cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.loader import EvalItem
from segformer_spark.data.sampler import rank_indices
from segformer_spark.errors import DataError
from segformer_spark.evaluation.decision import ARGMAX, Decision
from segformer_spark.evaluation.missing_points import Shown, parts_of
from segformer_spark.evaluation.session import Session
from segformer_spark.files.atomic import atomic_file
from segformer_spark.metrics.image_counts import ImageCounts, count_image, join_counts, read_image_counts
from segformer_spark.metrics.surface import Spacing
from segformer_spark.run.console import logger, progress

_PARTIAL = ".partial"
_SECONDS, _MOST_IMAGES = 20.0, 256


def collect(
    session: Session,
    indices: Sequence[int],
    folder: Path,
    settings: Mapping[str, Any],
    label: str,
    spacing: Spacing = (1.0, 1.0),
) -> tuple[ImageCounts, float | None]:
    """Counts of these images, each once, in their order; and seconds per image, prediction and counting together, None
    where all were counted before. Collective.

    Every 20 seconds what was counted is written below `folder`; a later call with equal `settings` counts the rest.
    `forget` removes it.
    """
    group, dataset = session.group, session.labelled()
    waiting = folder / _PARTIAL / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    done = group.on_main(lambda: _done(waiting, folder))
    todo = [index for index in indices if index not in done]
    if group.is_main and len(todo) < len(indices):
        logger.info("%d of %d images are counted already", len(indices) - len(todo), len(indices))
    own = [todo[at] for at in rank_indices(len(todo), group.rank, group.world_size)]
    parts: list[ImageCounts] = []
    began = saved = time.monotonic()

    def save() -> None:
        if parts:
            joined = join_counts(parts)
            with atomic_file(waiting / f"{joined.index[0]:08d}-{group.rank}.npz") as stream:
                stream.write(joined.to_bytes())
            parts.clear()

    with group.sharing_errors():
        found = session.predictor.with_confidence(session.items(own), _other_decision(session))
        for item, ids, confidence, others in progress(found, total=len(own), label=label, visible=group.is_main):
            assert item.mask is not None
            truth = torch.from_numpy(item.mask).to(group.device)
            classes = len(dataset.classes)
            rows = _by_parts(session, item, others, confidence)
            parts.append(count_image(item.index, ids, truth, classes, IGNORE_INDEX, confidence, spacing, rows))
            if time.monotonic() - saved > _SECONDS or len(parts) >= _MOST_IMAGES:
                save()
                saved = time.monotonic()
        save()
    seconds = (time.monotonic() - began) / max(1, len(own)) / group.world_size
    whole: ImageCounts = group.on_main(lambda: _joined(waiting, indices))
    return whole, seconds if own else None


def forget(folder: Path) -> None:
    """Remove what `collect` keeps for a later call."""
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)


def _other_decision(session: Session) -> Decision:
    """The decision that the missing points are split by: the rule where argmax was asked for, else the same."""
    own = session.settings.decision
    return Decision("expected_iou") if own == ARGMAX else own


def _by_parts(session: Session, item: EvalItem, ids: Tensor, confidence: Tensor) -> NDArray[np.int64]:
    """Rows (part, truth, prediction, pixels) of an image."""
    truth = item.mask
    assert truth is not None
    classes = session.labelled().classes
    shown = None
    if session.view.config.crops == "none" and not item.members:
        size = (item.pixels.shape[-2], item.pixels.shape[-1])
        stride = session.model.output_stride
        shown = Shown(size, (-(-size[0] // stride), -(-size[1] // stride)))
    predicted = ids.cpu().numpy()
    parts = parts_of(predicted, truth, len(classes), classes.background, confidence.cpu().numpy(), shown)
    known = truth < len(classes)
    joint = (parts[known].astype(np.int64) * len(classes) + truth[known]) * len(classes) + predicted[known]
    counts = np.bincount(joint)
    keys = np.flatnonzero(counts)
    rest, prediction = np.divmod(keys, len(classes))
    part, label = np.divmod(rest, len(classes))
    return np.stack([part, label, prediction, counts[keys]], -1)


def _done(waiting: Path, folder: Path) -> set[int]:
    """Indices that were counted before, with these settings; those of other settings are removed."""
    for other in (folder / _PARTIAL).glob("*"):
        if other != waiting:
            shutil.rmtree(other, ignore_errors=True)
    done: set[int] = set()
    for path in sorted(waiting.glob("*.npz")):
        try:
            own = {int(index) for index in read_image_counts(path).index}
        except DataError as error:
            logger.warning("counted again: %s", error)
            path.unlink()
            continue
        done |= own
    return done


def _joined(waiting: Path, indices: Sequence[int]) -> ImageCounts:
    whole = join_counts([read_image_counts(path) for path in sorted(waiting.glob("*.npz"))])
    assert whole.index.tolist() == sorted(indices), "every image is counted once"
    return whole
