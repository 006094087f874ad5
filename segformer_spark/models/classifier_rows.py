"""The classifier of a model that starts from another one: rows follow the names of the classes, not their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from segformer_spark.errors import CheckpointError, DataError
from segformer_spark.files.json_file import read_json_object
from segformer_spark.models.encoder_weights import read_state
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.weights import CARD
from segformer_spark.run.console import logger

_UNNAMED = "LABEL_"
"""What transformers calls classes without names."""


def follows_names(folder: Path, class_names: Sequence[str]) -> bool:
    """Whether the rows of a folder's classifier have to be taken by name.

    A published SegFormer of another number of classes has other classes: its classifier is left at random.
    """
    names = _names_in(folder)
    if names is None or names == tuple(class_names):
        return False
    return (folder / CARD).is_file() or len(names) == len(class_names)


@torch.no_grad()
def take_rows_by_name(
    model: SegmentationModel, fresh: Mapping[str, Tensor], folder: Path, class_names: Sequence[str]
) -> None:
    """Set the classifier: rows of known classes are the folder's, those of new ones `fresh` (by stored name)."""
    names = _names_in(folder) or ()
    state, own = read_state(folder / "model.safetensors"), model.state_dict()
    rows = {row: names.index(name) for row, name in enumerate(class_names) if name in names}
    live = {stored: name for name, stored in model.stored_names().items()}
    for stored in model.classifier_names:
        value = fresh[stored].clone()
        for row, source in rows.items():
            value[row] = state[stored][source]
        own[live[stored]].copy_(value)
    new = [name for row, name in enumerate(class_names) if row not in rows]
    logger.info(
        "%s: the classifier's rows follow the names of classes: %d taken over, %d new%s",
        *(folder, len(rows), len(new), f" ({', '.join(new)})" if new else ""),
    )


def _names_in(folder: Path) -> tuple[str, ...] | None:
    """The class names of a model folder; None where it does not say."""
    try:
        if (folder / CARD).is_file():
            return tuple(read_json_object(folder / CARD)["class_names"])
        if not (folder / "config.json").is_file():
            return None
        labels = read_json_object(folder / "config.json").get("id2label") or {}
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: the names of its classes cannot be read: {error}") from error
    return None if not names or any(name.startswith(_UNNAMED) for name in names) else names
