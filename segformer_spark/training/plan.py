"""What follows from configuration and data set before training begins."""

from __future__ import annotations

from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import SegmentationDataset
from segformer_spark.errors import ConfigError
from segformer_spark.metrics.report import check_metric


def plan_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    total = config.training.epochs * steps_per_epoch
    return total if config.training.max_steps is None else min(total, config.training.max_steps)


def check_dataset(config: Config, dataset: SegmentationDataset) -> None:
    """Raise ConfigError when model.num_classes or the selection metric do not go with the data set."""
    if config.model.num_classes not in (None, len(dataset.classes)):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, the data set {config.data.dataset} has "
            f"{len(dataset.classes)}: {', '.join(dataset.classes.names)}; leave it null"
        )
    check_metric(config.training.selection_metric, dataset.classes.names)
