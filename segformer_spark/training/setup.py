"""From a configuration to what a training needs: data, batch plan, schedule, model, loss. Touches no run directory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segformer_spark.checkpoint.compatibility import configuration_state
from segformer_spark.config.batch import BatchPlan, plan_batches
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.schema import Config
from segformer_spark.data.cache import CachedDataset, check_source
from segformer_spark.data.dataset import IGNORE_INDEX, SegmentationDataset, fixed_subset, parent
from segformer_spark.data.identity import FileDigests
from segformer_spark.data.manifest import read_manifest
from segformer_spark.data.registry import open_dataset, open_training_set
from segformer_spark.data.sampler import TrainBatchSampler
from segformer_spark.distributed.devices import set_float32_products
from segformer_spark.distributed.process_group import Group
from segformer_spark.engine.engine import check_precision
from segformer_spark.errors import DataError
from segformer_spark.losses.build import WeightedSum, build_loss
from segformer_spark.models.interface import SegmentationModel
from segformer_spark.models.pretrained import build_model
from segformer_spark.training.determinism import check_determinism
from segformer_spark.training.plan import check_dataset, check_model, plan_schedule, resolve_loss
from segformer_spark.training.schedule import Schedule


@dataclass(frozen=True)
class Setup:
    """The parts of a training.

    Attributes:
        train_subset: training images that are evaluated at every validation, too.
        image_loss: the loss of one image by itself, on this rank.
        configuration: what its checkpoints remember of the configuration.
    """

    train_set: SegmentationDataset
    val_set: SegmentationDataset
    train_subset: SegmentationDataset | None
    plan: BatchPlan
    sampler: TrainBatchSampler
    schedule: Schedule
    model: SegmentationModel
    loss: WeightedSum
    image_loss: WeightedSum
    configuration: dict[str, Any]


def prepare(config: Config, group: Group, local_cache: Path | None = None, files: FileDigests | None = None) -> Setup:
    """Open the data and build model and loss. Collective.

    Args:
        local_cache: this node's own copy of the configured cache; it may be None on some nodes only.
        files: what is known of the contents of the data set's files, if checkpoints shall remember the data.

    Raises:
        UserError: anything in configuration, data or weights that cannot be used.
    """
    check_precision(config, group.device)
    set_float32_products(config.training.precision, group.device)
    if group.device.type == "cuda":  # training's shapes are all alike
        torch.backends.cudnn.benchmark = not config.hardware.deterministic
    train_set = _shared_training_set(config, group, local_cache)
    cached, _ = parent(train_set)
    if isinstance(cached, CachedDataset):
        source = cached
        group.on_main(lambda: check_source(source, config.data, files))
    whole = group.on_main(lambda: open_dataset(config.data, config.data.val_split))
    val_set = fixed_subset(whole, config.data.val_subset, config.experiment.seed)
    plan = plan_batches(config.training, group.world_size)
    check_dataset(config, train_set, val_set)
    sampler = TrainBatchSampler(len(train_set), plan, group.rank, config.experiment.seed)
    schedule = plan_schedule(config, plan, sampler.steps_per_epoch)
    model = build_model(config.model, train_set.classes.names, config.experiment.seed, config.data.input_size)
    check_model(config, plan, model)
    loss_config = group.on_main(lambda: resolve_loss(config, train_set, files))
    check_determinism(config, model, loss_config, group.device)
    loss = build_loss(loss_config, len(train_set.classes), IGNORE_INDEX, group.differentiable_sum)
    image_loss = build_loss(loss_config, len(train_set.classes), IGNORE_INDEX)
    deepspeed_config(config, plan)
    fidelity = cached.fidelity if isinstance(cached, CachedDataset) else "exact"
    weights = loss_config.class_weights
    assert not isinstance(weights, str)
    identity = None if files is None else group.on_main(lambda: _identity(config, train_set, val_set, files))
    configuration = configuration_state(config, plan, len(train_set), weights, fidelity, identity)
    return Setup(
        train_set=train_set,
        val_set=val_set,
        train_subset=_train_subset(config, train_set, group, local_cache),
        plan=plan,
        sampler=sampler,
        schedule=schedule,
        model=model,
        loss=loss,
        image_loss=image_loss,
        configuration=configuration,
    )


def _shared_training_set(config: Config, group: Group, local_cache: Path | None) -> SegmentationDataset:
    """The training split. Lists and folders are read by rank 0, which hands the rows on: a file system is asked once,
    not by every rank. A cache is a few files, and each node may have its own."""
    own = {"cache": str(local_cache)} if local_cache is not None else {}
    data, crop = config.data.model_copy(update=own), config.augmentation.crop
    if config.data.cache is not None or local_cache is not None:
        return open_training_set(data, crop)
    return group.on_main(lambda: open_training_set(data, crop))


def _train_subset(
    config: Config, train_set: SegmentationDataset, group: Group, local_cache: Path | None
) -> SegmentationDataset | None:
    """Training images as validation is to see them: exact, and of their own size."""
    size = config.training.validation.train_subset
    if size is None:
        return None
    cached, _ = parent(train_set)
    changed = isinstance(cached, CachedDataset) and (cached.size is not None or cached.fidelity != "exact")
    if changed:
        train_set = group.on_main(lambda: open_dataset(config.data, config.data.train_split))
    elif config.data.reduced_decode:
        whole = config.model_copy(update={"data": config.data.model_copy(update={"reduced_decode": False})})
        train_set = _shared_training_set(whole, group, local_cache)
    return fixed_subset(train_set, size, config.experiment.seed)


def _identity(
    config: Config, train_set: SegmentationDataset, val_set: SegmentationDataset, files: FileDigests
) -> dict[str, str]:
    """The digests of both sets, of a fold's training images that of the split that they are from; what their manifests
    know is not read again."""
    for split in (config.data.train_split, config.data.val_split):
        with suppress(DataError):  # a manifest is not needed
            files.learn(read_manifest(config.data, split).stamps())
    whole, _ = parent(train_set)
    train = whole.digest if isinstance(whole, CachedDataset) else files.of_split(whole)
    return {"train": train, "val": files.of_split(val_set)}
