"""Sessions of models that were never exported, and a group of one process, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.distributed.environment import Launch
from segformer_spark.distributed.process_group import process_group
from segformer_spark.evaluation.session import InferenceSettings, OpenedModel, Session
from segformer_spark.models.interface import SegmentationModel
from tests.ranks import Group
from tests.tiny import untrained_card


def session_of(
    model: SegmentationModel,
    dataset: SegmentationDataset,
    group: Group,
    *,
    image_size: int = 64,
    settings: InferenceSettings | None = None,
    **inference: Any,
) -> Session:
    """A session of a live model; `inference` as its export would say."""
    card = untrained_card(dataset.classes, image_size=image_size, inference=inference)
    opened = OpenedModel(Path(), None, model.eval(), card)
    return Session([opened], settings or InferenceSettings(), group, dataset)


@contextmanager
def group_of_one() -> Iterator[Group]:
    """This process alone."""
    with process_group(Launch("test", 0, 1, 0, 1, None), torch.device("cpu"), timeout_minutes=1) as group:
        yield group
