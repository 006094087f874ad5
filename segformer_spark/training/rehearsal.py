"""The largest validation image, tried after the first step: that it fits into a GPU is not left to the first epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.data.image_header import read_header
from segformer_spark.data.loader import EvalLoading, eval_loader
from segformer_spark.data.sampler import rank_indices
from segformer_spark.distributed.process_group import Group
from segformer_spark.errors import DataError, UserError
from segformer_spark.evaluation.predict import ImageLoss, Predictor

_MOST_HEADERS = 1000


def largest_image(dataset: SegmentationDataset, group: Group) -> int:
    """The index of the image with most pixels, among a thousand evenly spread ones of a larger set. Collective."""
    every = max(1, -(-len(dataset) // _MOST_HEADERS))
    own = [index * every for index in rank_indices(-(-len(dataset) // every), group.rank, group.world_size)]
    best = (0, 0)
    for index in own:
        try:
            height, width = read_header(dataset.files(index)[0]).size
        except DataError:
            continue  # validation names it
        best = max(best, (height * width, -index))
    return -max(group.gather(best))[1]


def rehearse(
    predictor: Predictor, dataset: SegmentationDataset, loading: EvalLoading, group: Group, loss: ImageLoss
) -> None:
    """Predict a batch of the largest image. Collective.

    Raises:
        UserError: it does not fit into the memory of a GPU, or the image cannot be read.
    """
    index = largest_image(dataset, group)
    with group.sharing_errors(), memory_of_validation(dataset.sample_id(index), loading.batch_size, group):
        for _ in predictor.predict_with_loss(eval_loader(dataset, [index] * loading.batch_size, loading), loss):
            pass


@contextmanager
def memory_of_validation(what: str, batch_size: int, group: Group) -> Iterator[None]:
    """Raise UserError where the GPU's memory is full in the block.

    Args:
        what: is validated.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full in validation ({what}, {batch_size} images at a time) on rank {group.rank}: "
            f"{str(error).splitlines()[0]}",
            "Lower training.validation.batch_size, or let inference.window cut large images into windows.",
        ) from error
