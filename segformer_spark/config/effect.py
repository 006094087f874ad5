"""Settings that change nothing because of others, and what to set so that they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segformer_spark.config.fields import FIELDS, flatten
from segformer_spark.config.schema import Config


@dataclass(frozen=True)
class _Condition:
    """When settings have an effect, and how that is brought about."""

    dotted: tuple[str, ...]
    holds: Callable[[Config], bool]
    needed: str


def _within(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _loss(*types: str) -> tuple[Callable[[Config], bool], str]:
    return lambda config: config.training.loss.type in types, f"training.loss.type {' or '.join(types)}"


def _crop(*modes: str) -> tuple[Callable[[Config], bool], str]:
    return lambda config: config.augmentation.crop.mode in modes, f"augmentation.crop.mode {' or '.join(modes)}"


_CONDITIONS: Sequence[_Condition] = (
    _Condition(
        ("inference.window",),
        lambda c: c.inference.resize != "image_size" or (c.inference.window or 0) < max(c.data.input_size),
        "a window smaller than data.image_size, or inference.resize short_side or native",
    ),
    _Condition(
        ("inference.overlap", "inference.window_weights"), lambda c: c.inference.window is not None, "inference.window"
    ),
    _Condition(("inference.crop_margin",), lambda c: c.inference.crops != "none", "inference.crops box or two_pass"),
    _Condition(
        _within(
            *("data.folder", "classes", "masks", "background", "ignore_id", "ignore_color"),
            *("lists", "mask_root", "val_fraction"),
        ),
        lambda c: c.data.dataset == "folder",
        "data.dataset folder",
    ),
    _Condition(
        _within("data.cross_validation", "num_folds", "group_by"),
        lambda c: c.data.cross_validation.fold is not None,
        "data.cross_validation.fold",
    ),
    _Condition(("data.folder.ignore_id",), lambda c: c.data.folder.masks == "index", "data.folder.masks index"),
    _Condition(
        ("data.palette_masks",),
        lambda c: c.data.dataset == "voc" or (c.data.dataset == "folder" and c.data.folder.masks == "index"),
        "data.dataset voc, or folder with masks index",
    ),
    _Condition(
        ("data.nearest_color",),
        lambda c: c.data.dataset == "spark" or (c.data.dataset == "folder" and c.data.folder.masks == "color"),
        "data.dataset spark, or folder with masks color",
    ),
    _Condition(("model.variant",), lambda c: c.model.name == "segformer", "model.name segformer"),
    _Condition(
        _within("model.custom", "depths", "hidden_sizes", "num_heads", "decoder_size"),
        lambda c: c.model.variant == "custom",
        "model.variant custom",
    ),
    _Condition(("model.weights_dir",), lambda c: c.model.pretrained != "none", "model.pretrained"),
    _Condition(
        _within("training.optimizer", "betas", "eps"),
        lambda c: c.training.optimizer.type != "sgd",
        "training.optimizer.type adamw or adam",
    ),
    _Condition(
        _within("training.optimizer", "momentum", "nesterov"),
        lambda c: c.training.optimizer.type == "sgd",
        "training.optimizer.type sgd",
    ),
    _Condition(
        ("training.optimizer.lr_reference_batch",),
        lambda c: c.training.optimizer.lr_scaling != "none",
        "training.optimizer.lr_scaling linear or sqrt",
    ),
    _Condition(
        ("training.optimizer.head_lr_multiplier",),
        lambda c: not c.model.freeze_backbone,
        "model.freeze_backbone false (with a frozen encoder training.optimizer.lr is the head's)",
    ),
    _Condition(
        ("training.scheduler.warmup_epochs",),
        lambda c: c.training.scheduler.warmup_steps is None,
        "training.scheduler.warmup_steps null",
    ),
    _Condition(
        ("training.scheduler.power",),
        lambda c: c.training.scheduler.type == "warmup_poly",
        "training.scheduler.type warmup_poly",
    ),
    _Condition(
        _within("training.scheduler", "restart_epochs", "restart_factor"),
        lambda c: c.training.scheduler.type == "cosine_restarts",
        "training.scheduler.type cosine_restarts",
    ),
    _Condition(
        _within("training.scheduler", "plateau_factor", "plateau_patience"),
        lambda c: c.training.scheduler.type == "plateau",
        "training.scheduler.type plateau",
    ),
    _Condition(
        ("training.scheduler.min_lr_ratio",),
        lambda c: c.training.scheduler.type != "constant",
        "another training.scheduler.type than constant",
    ),
    _Condition(
        ("training.early_stopping.min_delta",),
        lambda c: c.training.early_stopping.patience is not None,
        "training.early_stopping.patience",
    ),
    _Condition(("training.reduce_precision",), lambda c: c.training.precision == "bf16", "training.precision bf16"),
    _Condition(("training.max_skipped_steps",), lambda c: c.training.precision == "fp16", "training.precision fp16"),
    _Condition(_within("training.loss", "ce_weight", "dice_weight"), *_loss("ce_dice", "focal_dice")),
    _Condition(("training.loss.focal_gamma",), *_loss("focal", "focal_dice")),
    _Condition(("training.loss.dice_smooth",), *_loss("dice", "ce_dice", "focal_dice")),
    _Condition(_within("training.loss", "ohem_threshold", "ohem_min_share"), *_loss("ohem")),
    _Condition(_within("training.loss", "boundary_radius", "boundary_weight"), *_loss("boundary_ce")),
    _Condition(("training.loss.auxiliary_weight",), lambda c: c.model.name == "deeplabv3", "model.name deeplabv3"),
    _Condition(
        _within("augmentation", "rotation_degrees", "scale", "shift"),
        lambda c: c.augmentation.affine > 0,
        "augmentation.affine",
    ),
    _Condition(
        _within("augmentation", "brightness", "contrast", "saturation", "hue"),
        lambda c: c.augmentation.color > 0,
        "augmentation.color",
    ),
    _Condition(("augmentation.blur_sigma",), lambda c: c.augmentation.blur > 0, "augmentation.blur"),
    _Condition(
        _within("augmentation", "coarse_dropout_holes", "coarse_dropout_size"),
        lambda c: c.augmentation.coarse_dropout > 0,
        "augmentation.coarse_dropout",
    ),
    _Condition(("augmentation.crop.scale",), *_crop("fixed", "variable", "original")),
    _Condition(("augmentation.crop.base",), *_crop("fixed")),
    _Condition(_within("augmentation.crop", "margin", "jitter"), *_crop("box")),
    _Condition(("output.tensorboard_images",), lambda c: c.output.tensorboard, "output.tensorboard"),
)


def without_effect(config: Config) -> dict[str, str]:
    """{setting that is not at its default and changes nothing: what it needs}."""
    values = flatten(config.model_dump())
    return {
        dotted: condition.needed
        for condition in _CONDITIONS
        for dotted in condition.dotted
        if values[dotted] != FIELDS[dotted].default and not condition.holds(config)
    }
