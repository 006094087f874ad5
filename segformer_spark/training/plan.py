"""What follows from configuration and data set before training begins. Imports no torch, so that a dry run answers at
once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from segformer_spark.config.batch import BatchPlan
from segformer_spark.config.schema import Config, LossConfig
from segformer_spark.data.class_weights import class_weights
from segformer_spark.data.dataset import ClassInfo, SegmentationDataset, parent
from segformer_spark.data.flip_pairs import flipped_ids, refuse_unpaired_sides
from segformer_spark.data.identity import FileDigests
from segformer_spark.data.inference_view import check_view
from segformer_spark.data.manifest import check_matches, read_manifest
from segformer_spark.data.registry import open_dataset, open_training_set
from segformer_spark.errors import ConfigError
from segformer_spark.metrics.names import check_metric, metric_names
from segformer_spark.training.schedule import Schedule, build_schedule

if TYPE_CHECKING:
    from segformer_spark.models.interface import SegmentationModel


def plan_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    total = config.training.epochs * steps_per_epoch
    return total if config.training.max_steps is None else min(total, config.training.max_steps)


def plan_schedule(config: Config, plan: BatchPlan, steps_per_epoch: int) -> Schedule:
    """The learning rate of every step of the run.

    Raises:
        ConfigError: the warm-up is not shorter than the configured epochs.
    """
    total = plan_steps(config, steps_per_epoch)
    training = config.training
    return build_schedule(training.scheduler, peak_lr(config, plan), steps_per_epoch, total, training.epochs)


def check_dataset(config: Config, train_set: SegmentationDataset, dataset: SegmentationDataset) -> None:
    """Raise ConfigError when class tables, flips, model.num_classes and selection metric do not go together."""
    if train_set.classes.names != dataset.classes.names:
        raise ConfigError(
            f"training images have the classes {', '.join(train_set.classes.names)}, validation images "
            f"{', '.join(dataset.classes.names)}"
        )
    if config.model.num_classes not in (None, len(dataset.classes)):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, the data set {config.data.dataset} has "
            f"{len(dataset.classes)}: {', '.join(dataset.classes.names)}; leave it null"
        )
    check_metric(selection_metric(config, dataset.classes), dataset.classes.names, dataset.classes.background)
    flipped_ids(dataset.classes.names, config.data.flip_pairs or ())
    if config.augmentation.horizontal_flip:
        what, without = "augmentation.horizontal_flip", "set augmentation.horizontal_flip: 0"
        refuse_unpaired_sides(dataset.classes.names, config.data.flip_pairs, what, without)


def selection_metric(config: Config, classes: ClassInfo) -> str:
    """The metric that the best model is chosen by (`training.selection_metric`)."""
    return config.training.metric_among(metric_names(classes.names, classes.background))


def open_checked(config: Config) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation images, which go together with each other and with the configuration.

    Raises:
        UserError: they do not, or cannot be opened.
    """
    train_set = open_training_set(config.data, config.augmentation.crop)
    val_set = open_dataset(config.data, config.data.val_split)
    check_dataset(config, train_set, val_set)
    check_view(config.inference, val_set)
    return train_set, val_set


def check_model(config: Config, plan: BatchPlan, model: SegmentationModel) -> None:
    """Raise ConfigError when a model cannot be trained with these batches."""
    if plan.micro_batch * plan.world_size < model.min_batch:
        raise ConfigError(
            f"{model.name} has batch norm over maps of one value per image: a step needs {model.min_batch} images "
            f"over all devices at least; raise training.batch_size"
        )
    if model.encoder_has_batch_norm and config.training.accumulation == "exact" and plan.accumulation_steps > 1:
        raise ConfigError(
            f"training.accumulation exact: {model.name} has batch norm in its encoder, whose statistics would be those "
            "of one micro-batch; set training.accumulation=mean, or make do with one micro-batch"
        )


def peak_lr(config: Config, plan: BatchPlan) -> float:
    """The learning rate after `lr_scaling` (linear: Goyal et al. 2017; square root: Krizhevsky 2014)."""
    optimizer = config.training.optimizer
    factor = plan.global_batch / optimizer.lr_reference_batch
    factors = {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}
    return optimizer.lr * factors[optimizer.lr_scaling]


def lr_warning(config: Config, plan: BatchPlan) -> str | None:
    """What to say when more devices make a larger batch and the learning rate stays."""
    optimizer = config.training.optimizer
    fixed = config.training.global_batch_size is not None
    if plan.world_size == 1 or optimizer.lr_scaling != "none" or fixed:
        return None
    return (
        f"the learning rate {optimizer.lr:g} is not scaled with the world size: {plan.world_size} devices make a "
        f"global batch of {plan.global_batch}. Set training.optimizer.lr_scaling to linear or sqrt to scale it from "
        "lr_reference_batch, or training.global_batch_size to keep the batch"
    )


def single_image_note(config: Config, plan: BatchPlan, model: SegmentationModel) -> str | None:
    """What to say when batch norm after global pooling sees one value per channel."""
    norms = model.norms_after_global_pooling
    joined = plan.accumulation_steps if config.training.accumulation == "exact" else 1
    if plan.micro_batch * plan.world_size * joined > 1 or not norms:
        return None
    return (
        f"{model.name}: with one image at a time the {len(norms)} batch norm after global pooling has no variance to "
        "divide by; it keeps its running statistics, and scales and shifts alone"
    )


def resolve_loss(config: Config, dataset: SegmentationDataset, files: FileDigests | None = None) -> LossConfig:
    """The loss with class weights as numbers: a rule is applied to the training split's manifest.

    Args:
        files: what is known of the files' contents already.

    Raises:
        DataError: no manifest, or one of other files.
    """
    loss = config.training.loss
    if not isinstance(loss.class_weights, str):
        return loss
    manifest = read_manifest(config.data, config.data.train_split)
    whole, indices = parent(dataset)
    if config.data.cache is None:  # a cache compares digests itself
        check_matches(manifest, whole, Path(config.data.root), files)
    weights = class_weights(loss.class_weights, [manifest.images[index]["pixels"] for index in indices])
    return loss.model_copy(update={"class_weights": weights})
