"""Counts of a whole labelled data set, from which every metric follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.sampler import rank_indices
from segformer_spark.distributed.process_group import Group
from segformer_spark.evaluation.predict import ImageLoss, Predictor
from segformer_spark.metrics.confusion import TRUTH, EvaluationCounts
from segformer_spark.run.console import progress


def count(
    predictor: Predictor,
    dataset: SegmentationDataset,
    loading: EvalLoading,
    group: Group,
    label: str,
    loss: ImageLoss | None = None,
) -> tuple[EvaluationCounts, float | None]:
    """Counts of the whole data set, every image once over all ranks, and the mean of `loss` over its images that have
    a label; None without loss or label. Collective.

    Who calls it has asked `check_view` before.
    """
    counts = EvaluationCounts.zeros(len(dataset), len(dataset.classes), len(dataset.categories), group.device)
    losses = torch.zeros(len(dataset), dtype=torch.float64, device=group.device)
    indices = rank_indices(len(dataset), group.rank, group.world_size)
    batches = eval_loader(dataset, indices, loading)
    found: Iterator[Any] = (
        ((*one, None) for one in predictor.predict(batches))
        if loss is None
        else predictor.predict_with_loss(batches, loss)
    )
    with group.sharing_errors():
        for item, prediction, value in progress(found, total=len(indices), label=label, visible=group.is_main):
            assert item.mask is not None
            truth = torch.from_numpy(item.mask).to(group.device)
            counts.add(item.index, dataset.category(item.index), prediction, truth, IGNORE_INDEX)
            if value is not None:
                losses[item.index] = value
    total = counts.reduce(group.sum)
    labelled = int((total.per_image[..., TRUTH].sum(1) > 0).sum())
    sum_of_losses = float(group.sum(losses).sum())
    return total, sum_of_losses / labelled if loss is not None and labelled else None
