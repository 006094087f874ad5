"""Every setting changes something, or is refused where it would change nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from segformer_spark.config import effect
from segformer_spark.config.batch import plan_batches
from segformer_spark.config.deepspeed import deepspeed_config
from segformer_spark.config.effect import without_effect
from segformer_spark.config.fields import FIELDS
from segformer_spark.config.load import load_config, run_path
from segformer_spark.config.schema import Config
from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.decode import Decoding
from segformer_spark.data.inference_view import InferenceView
from segformer_spark.data.loader import fed_sample
from segformer_spark.data.manifest import manifest_path
from segformer_spark.data.registry import open_dataset, open_training_set
from segformer_spark.data.transforms import TrainTransform
from segformer_spark.engine.optimizer import build_optimizer
from segformer_spark.errors import ConfigError
from segformer_spark.evaluation.sliding import window_starts, window_weights
from segformer_spark.losses.build import build_loss
from segformer_spark.models.registry import build_network
from segformer_spark.models.segformer import SegFormer, build_segformer
from segformer_spark.training.best import BestTracker
from segformer_spark.training.measure import measured_parts
from segformer_spark.training.plan import peak_lr, plan_steps
from segformer_spark.training.schedule import Plateau, Schedule, build_schedule
from segformer_spark.training.validation import Validation
from segformer_spark.verbs.overrides import refuse_without_effect
from tests.tiny import TINY_SETTINGS
from tests.verbs import leave

TESTS = Path(__file__).parents[1]
NAMES = ("background", "body", "panels")
Probe = Callable[[Config], Any]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def fed(config: Config) -> str:
    """What the model is fed with in training."""
    dataset = open_training_set(config.data, config.augmentation.crop)
    transform = TrainTransform.of(config, dataset.classes.names)
    samples = [fed_sample(dataset, transform, epoch, index) for epoch in range(2) for index in range(6)]
    return digest(*(array for sample in samples for array in (sample.image, sample.mask)))


def steps(config: Config) -> Any:
    """Batches and learning rates of every step on two ranks, 40 images."""
    plan = plan_batches(config.training, 2)
    per_epoch = plan.steps_per_epoch(40)
    total = plan_steps(config, per_epoch)
    schedule = build_schedule(
        config.training.scheduler, peak_lr(config, plan), per_epoch, total, config.training.epochs
    )
    return plan, [schedule.lr(step) for step in range(total)]


OPTIMIZER_OPTIONS = ("name", "lr_multiplier", "betas", "eps", "weight_decay", "momentum", "nesterov")


def lowered(config: Config) -> list[float]:
    """Learning rates of a plateau after validations that bring nothing."""
    plateau, schedule = Plateau(), Schedule(config.training.scheduler, 1.0, 0, 100)
    rates = []
    for _ in range(4):
        plateau.update(0.5, config.training.scheduler.plateau_patience)
        rates.append(schedule.lr(1, plateau.reductions))
    return rates


def optimizer(config: Config) -> Any:
    model, _ = measured_parts(config, NAMES)
    built = build_optimizer(model, config.training.optimizer, torch.device("cpu"))
    return [(type(built).__name__, *(group.get(key) for key in OPTIMIZER_OPTIONS)) for group in built.param_groups]


@lru_cache
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    return 2 * torch.randn(2, 3, 12, 12, generator=generator), labels.repeat_interleave(12, 1).repeat_interleave(12, 2)


def loss(config: Config) -> float:
    """On logits with auxiliary ones beside them."""
    coarse, labels = logits()
    built = build_loss(config.training.loss, 3, IGNORE_INDEX)
    return float(built.of_outputs([coarse, coarse.flip(-1)], labels))


def network(config: Config) -> Any:
    """Sizes, initial weights, drop probabilities and what is trained."""
    options = {"dropout": config.model.dropout, "drop_path": config.model.drop_path}
    model: Any
    if config.model.name == "segformer":
        seed, frozen = config.experiment.seed, config.model.freeze_backbone
        model = build_segformer(config.model.sizes, NAMES, freeze_backbone=frozen, seed=seed, **options)
    else:
        model = build_network(config.model, len(NAMES), config.data.input_size)
    parts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    paths = [module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    first = next(iter(model.parameters())).detach().numpy() if isinstance(model, SegFormer) else np.zeros(0)
    return shapes, parts, paths, trained, digest(first)


def shown(config: Config) -> Any:
    """What evaluation shows of an image of 150 x 200: sizes, windows, crops."""
    view, image = InferenceView(config.data.input_size, config.inference), np.zeros((150, 200, 3), np.uint8)
    if config.inference.crops != "none":
        return config.inference.crops, view.around(image, (50, 60, 90, 100))[1]
    size = view.whole(image).shape[:2]
    window = config.inference.window
    overlap = config.inference.overlap
    if window is None:
        return size, None
    weights = digest(window_weights(config.inference.window_weights, torch.zeros(9, 9)).numpy())
    return size, [window_starts(side, min(window, side), overlap, 4) for side in size], weights


def plans(config: Config) -> Any:
    return deepspeed_config(config, plan_batches(config.training, 1))


def read(config: Config) -> Any:
    return Decoding.of(config.data), config.data.folder, config.data.folder.ids


def validated(config: Config) -> int:
    """Images per rank at a time."""
    engine: Any = SimpleNamespace(model=None, group=SimpleNamespace(device=torch.device("cpu")))
    nothing: Any = None
    dataset = open_dataset(config.data, config.data.val_split)
    loss = build_loss(config.training.loss, 3, IGNORE_INDEX)
    data: Any = SimpleNamespace(val_set=dataset, train_subset=None, image_loss=loss)
    validation = Validation(engine, data, config, nothing, BestTracker(None, 0.0), nothing, Path())
    return validation.loading.batch_size


def place(config: Config) -> Any:
    return run_path(config), manifest_path(config.data)


@dataclass(frozen=True)
class Shown:
    """A changed value, what it needs, and where the change is seen."""

    probe: Probe
    value: str
    needs: tuple[str, ...] = ()


SGD = ("training.optimizer.type=sgd",)
RESTARTS = ("training.scheduler.type=cosine_restarts", "training.scheduler.restart_epochs=2", "training.epochs=20")
PLATEAU = ("training.scheduler.type=plateau", "training.scheduler.plateau_patience=1")
PLAIN = (
    "augmentation.horizontal_flip=0",
    "augmentation.vertical_flip=0",
    "augmentation.affine=0",
    "augmentation.color=0",
    "augmentation.blur=0",
)
AFFINE, COLOR = ("augmentation.affine=1",), ("augmentation.color=1",)
DROPOUT = ("augmentation.coarse_dropout=1",)
FOLDER = ("data.dataset=folder",)
ROWS = "[{name: a, color: [0, 0, 0]}, {name: b, color: [9, 9, 9]}]"
UNCONDITIONAL = {
    *("data.flip_pairs", "model.name", "model.encoder", "training.optimizer.lr_scaling"),
    *("experiment.seed", "augmentation.crop.max_class_share", "augmentation.crop.share"),
}
"""Settings that `needs` helps to show, and that are never refused for lack of it, or by the schema."""

SHOWN: dict[str, Shown] = {
    "experiment.name": Shown(place, "other"),
    "experiment.seed": Shown(fed, "1", ("augmentation.vertical_flip=0.5",)),
    "experiment.notes": Shown(lambda c: c.experiment.notes, "a remark"),
    "data.dataset": Shown(lambda c: c.data.dataset, "camvid"),  # the readers' own tests show the rest
    "data.image_size": Shown(fed, "96"),
    "data.train_split": Shown(fed, "val"),
    "data.cross_validation.fold": Shown(fed, "1"),
    "data.cross_validation.num_folds": Shown(fed, "3", ("data.cross_validation.fold=1",)),
    "data.cross_validation.group_by": Shown(
        fed, "(.)$", ("data.cross_validation.fold=1", "data.cross_validation.num_folds=2")
    ),
    "data.exif_orientation": Shown(read, "upright"),
    "data.max_pixels": Shown(read, "1000"),
    "data.nearest_color": Shown(read, "true"),
    "data.palette_masks": Shown(read, "index", ("data.dataset=voc",)),
    "data.flip_pairs": Shown(fed, "[[body, panels]]", ("augmentation.horizontal_flip=1",)),
    "data.manifest": Shown(place, "elsewhere.json"),
    "data.folder.classes": Shown(read, ROWS, FOLDER),
    "data.folder.lists": Shown(read, "lists", FOLDER),
    "data.folder.mask_root": Shown(read, "masks", (*FOLDER, "data.folder.lists=lists")),
    "data.folder.val_fraction": Shown(read, "0.2", FOLDER),
    "data.folder.masks": Shown(read, "index", FOLDER),
    "data.folder.background": Shown(read, "a", (*FOLDER, f"data.folder.classes={ROWS}")),
    "data.folder.ignore_id": Shown(read, "7", (*FOLDER, "data.folder.masks=index")),
    "data.folder.ignore_color": Shown(read, "[1, 2, 3]", FOLDER),
    "model.name": Shown(network, "fcn", ("model.pretrained=none",)),
    "model.variant": Shown(network, "b0", ("model.pretrained=none", "model.variant=b1")),
    "model.encoder": Shown(network, "mobilenet_v2", ("model.name=unet", "model.pretrained=none")),
    "model.freeze_backbone": Shown(network, "true"),
    "model.dropout": Shown(network, "0.3"),
    "model.drop_path": Shown(network, "0.4"),
    "model.custom.depths": Shown(network, "[1, 1, 1, 2]"),
    "model.custom.hidden_sizes": Shown(network, "[8, 8, 20, 16]"),
    "model.custom.num_heads": Shown(lambda c: c.model.sizes, "[1, 1, 1, 2]"),
    "model.custom.decoder_size": Shown(network, "16"),
    "training.epochs": Shown(steps, "7"),
    "training.max_steps": Shown(steps, "17"),
    "training.batch_size": Shown(steps, "3"),
    "training.accumulation_steps": Shown(steps, "2"),
    "training.global_batch_size": Shown(steps, "32"),
    "training.precision": Shown(plans, "bf16"),
    "training.optimizer.lr": Shown(steps, "1e-3"),
    "training.optimizer.weight_decay": Shown(optimizer, "0.2"),
    "training.optimizer.betas": Shown(optimizer, "[0.8, 0.9]"),
    "training.optimizer.eps": Shown(optimizer, "1e-6"),
    "training.optimizer.type": Shown(optimizer, "sgd"),
    "training.optimizer.momentum": Shown(optimizer, "0.5", SGD),
    "training.optimizer.nesterov": Shown(optimizer, "true", SGD),
    "training.optimizer.head_lr_multiplier": Shown(optimizer, "10"),
    "training.optimizer.layer_decay": Shown(optimizer, "0.5"),
    "training.optimizer.lr_scaling": Shown(steps, "sqrt", ("training.batch_size=4",)),
    "training.optimizer.lr_reference_batch": Shown(steps, "32", ("training.optimizer.lr_scaling=linear",)),
    "training.scheduler.type": Shown(steps, "warmup_linear"),
    "training.scheduler.warmup_epochs": Shown(steps, "2"),
    "training.scheduler.warmup_steps": Shown(steps, "3"),
    "training.scheduler.min_lr_ratio": Shown(steps, "0.1"),
    "training.scheduler.restart_epochs": Shown(steps, "1", RESTARTS),
    "training.scheduler.restart_factor": Shown(steps, "1", RESTARTS),
    "training.scheduler.plateau_factor": Shown(lowered, "0.5", PLATEAU),
    "training.scheduler.plateau_patience": Shown(lowered, "2", PLATEAU),
    "training.scheduler.power": Shown(steps, "0.9", ("training.scheduler.type=warmup_poly",)),
    "training.loss.type": Shown(loss, "lovasz"),
    "training.loss.ce_weight": Shown(loss, "0.9"),
    "training.loss.dice_weight": Shown(loss, "0.9"),
    "training.loss.class_weights": Shown(loss, "[1.0, 2.0, 3.0]"),
    "training.loss.label_smoothing": Shown(loss, "0.1"),
    "training.loss.focal_gamma": Shown(loss, "1", ("training.loss.type=focal",)),
    "training.loss.dice_smooth": Shown(loss, "50"),
    "training.loss.ohem_threshold": Shown(loss, "0.2", ("training.loss.type=ohem",)),
    "training.loss.ohem_min_share": Shown(loss, "0.9", ("training.loss.type=ohem", "training.loss.ohem_threshold=0.1")),
    "training.loss.auxiliary_weight": Shown(loss, "0.9", ("model.name=deeplabv3", "model.pretrained=none")),
    "training.loss.boundary_radius": Shown(loss, "1", ("training.loss.type=boundary_ce",)),
    "training.loss.boundary_weight": Shown(loss, "1", ("training.loss.type=boundary_ce",)),
    "augmentation.horizontal_flip": Shown(fed, "1"),
    "augmentation.vertical_flip": Shown(fed, "1"),
    "augmentation.affine": Shown(fed, "1"),
    "augmentation.rotation_degrees": Shown(fed, "90", AFFINE),
    "augmentation.scale": Shown(fed, "[0.5, 2.0]", AFFINE),
    "augmentation.shift": Shown(fed, "0.4", AFFINE),
    "augmentation.color": Shown(fed, "1"),
    "augmentation.brightness": Shown(fed, "0.5", COLOR),
    "augmentation.contrast": Shown(fed, "0.5", COLOR),
    "augmentation.saturation": Shown(fed, "0.5", COLOR),
    "augmentation.hue": Shown(fed, "0.2", COLOR),
    "augmentation.blur": Shown(fed, "1"),
    "augmentation.blur_sigma": Shown(fed, "[2.0, 3.0]", ("augmentation.blur=1",)),
    "augmentation.photometric": Shown(fed, "1"),
    "augmentation.coarse_dropout": Shown(fed, "1"),
    "augmentation.coarse_dropout_holes": Shown(fed, "2", DROPOUT),
    "augmentation.coarse_dropout_size": Shown(fed, "0.5", DROPOUT),
    "augmentation.mosaic": Shown(fed, "1"),
    "augmentation.crop.mode": Shown(fed, "box"),
    "augmentation.crop.scale": Shown(fed, "[1.0, 1.2]", ("augmentation.crop.mode=fixed",)),
    "augmentation.crop.base": Shown(fed, "short_side", ("augmentation.crop.mode=fixed",)),
    "augmentation.crop.max_class_share": Shown(fed, "0.5", ("augmentation.crop.mode=random",)),
    "augmentation.crop.share": Shown(fed, "0.3", ("augmentation.crop.mode=box",)),
    "augmentation.crop.margin": Shown(fed, "1", ("augmentation.crop.mode=box",)),
    "augmentation.crop.jitter": Shown(fed, "0.7", ("augmentation.crop.mode=box",)),
    "inference.resize": Shown(shown, "native"),
    "inference.window": Shown(shown, "40"),
    "inference.overlap": Shown(shown, "0.7", ("inference.window=40",)),
    "inference.window_weights": Shown(shown, "gaussian", ("inference.window=40",)),
    "inference.crops": Shown(shown, "two_pass"),
    "inference.crop_margin": Shown(shown, "1", ("inference.crops=box",)),
    "training.validation.batch_size": Shown(validated, "3"),
    "output.save_path": Shown(place, "elsewhere"),
    "deepspeed.zero_stage": Shown(plans, "2"),
}

CONDITIONAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((name for name, one in SHOWN.items() if one.needs and name not in UNCONDITIONAL), ()),
    **dict.fromkeys(("data.folder.classes", "data.folder.masks", "data.folder.ignore_color"), ()),
    **dict.fromkeys(("data.folder.lists", "data.folder.val_fraction"), ()),
    "data.folder.mask_root": ("data.folder.lists=lists",),
    **dict.fromkeys(("training.loss.ce_weight", "training.loss.dice_weight"), ("training.loss.type=ce",)),
    "training.loss.dice_smooth": ("training.loss.type=ce",),
    "inference.window": ("data.image_size=32",),
    "data.nearest_color": ("data.dataset=voc",),
    "model.variant": ("model.name=unet", "model.pretrained=none"),
    "model.weights_dir": ("model.pretrained=none",),
    **{f"model.custom.{name}": () for name in ("depths", "hidden_sizes", "num_heads", "decoder_size")},
    **dict.fromkeys(("training.optimizer.betas", "training.optimizer.eps"), ("training.optimizer.type=sgd",)),
    "training.optimizer.head_lr_multiplier": ("model.freeze_backbone=true",),
    "training.reduce_precision": ("training.precision=fp32",),
    "training.scheduler.warmup_epochs": ("training.scheduler.warmup_steps=3",),
    "training.scheduler.min_lr_ratio": ("training.scheduler.type=constant",),
    "training.early_stopping.min_delta": ("training.early_stopping.patience=null",),
    "training.max_skipped_steps": (),
    "output.tensorboard_images": ("output.tensorboard=false",),
    **dict.fromkeys(
        (f"augmentation.{name}" for name in ("rotation_degrees", "scale", "shift")), ("augmentation.affine=0",)
    ),
    **dict.fromkeys(
        (f"augmentation.{name}" for name in ("brightness", "contrast", "saturation", "hue")), ("augmentation.color=0",)
    ),
    "augmentation.blur_sigma": ("augmentation.blur=0",),
}
"""{setting that needs another: what takes its effect away}."""

RESUME, TRAIN, STOP = "training/test_resume.py", "training/test_train.py", "training/test_stop.py"
GROUP, CACHE = "distributed/test_process_group.py", "data/test_cache.py"
ELSEWHERE = {
    "data.root": ("training/test_changed_data.py", "test_an_unchanged_set_that_was_moved_goes_on"),
    "data.val_split": (TRAIN, "test_mistakes_stop_a_run_with_a_clear_error"),
    "data.val_subset": (TRAIN, "test_validation_by_steps_on_a_subset"),
    "data.num_workers": (TRAIN, "test_a_damaged_image_is_named_on_every_worker_setting"),
    "data.cache": (CACHE, "test_a_cache_of_other_files_is_refused_before_training"),
    "data.reduced_decode": (
        "data/test_cache.py",
        "test_reduced_decoding_is_for_whole_images_of_files_and_of_original_bytes",
    ),
    "model.pretrained": ("models/test_pretrained.py", "test_imagenet_start_takes_the_encoder"),
    "model.weights_dir": ("models/test_pretrained.py", "test_missing_weights_are_an_error_and_never_a_random_start"),
    "model.num_classes": (TRAIN, "test_mistakes_stop_a_run_with_a_clear_error"),
    "training.accumulation": ("engine/test_accumulation.py", "test_the_mean_of_losses_is_something_else"),
    "training.activation_checkpointing": ("engine/test_options.py", "test_recomputation_drops_the_same_paths"),
    "training.max_skipped_steps": ("training/test_loop.py", "test_skipped_updates_end_the_run"),
    "training.selection_metric": (TRAIN, "test_mistakes_stop_a_run_with_a_clear_error"),
    "training.validation.every_epochs": (TRAIN, "test_validation_by_steps_on_a_subset"),
    "training.validation.every_steps": (TRAIN, "test_validation_by_steps_on_a_subset"),
    "training.validation.train_subset": (TRAIN, "test_losses_and_scores_on_both_sets_are_followed"),
    "training.validation.at_start": (
        "training/test_resume.py",
        "test_the_validation_before_the_first_step_is_not_done_again",
    ),
    "training.early_stopping.patience": ("training/test_loop.py", "test_a_run_that_gets_no_better_ends_early"),
    "training.early_stopping.min_delta": (
        "training/test_stop.py",
        "test_any_rise_is_the_best_and_patience_waits_for_a_large_one",
    ),
    "training.ema.decay": ("engine/test_average.py", "test_the_engine_averages_evaluates_and_exports"),
    "output.checkpoint_every_steps": (RESUME, "test_killed_in_mid_epoch_and_resumed_is_bit_equal"),
    **{
        f"output.checkpoint_every_{unit}": ("training/test_checkpointer.py", "test_steps_epochs_and_minutes")
        for unit in ("epochs", "minutes")
    },
    "output.save_in_background": (
        "training/test_checkpointer.py",
        "test_the_snapshot_has_the_values_of_its_step_and_training_goes_on",
    ),
    "output.keep_every": ("checkpoint/test_store.py", "test_the_best_and_every_nth_stay"),
    "output.keep_checkpoints": ("checkpoint/test_store.py", "test_as_many_are_kept_as_asked_for"),
    "output.log_every_steps": (RESUME, "test_every_step_counts_once_in_the_training_loss"),
    "output.tensorboard": (TRAIN, "test_tensorboard_has_the_same_scalars"),
    "output.trackers": ("training/test_trackers.py", "test_mlflow_has_one_run_with_all_steps"),
    "output.tensorboard_images": ("training/test_tensorboard.py", "test_the_same_images_at_every_validation"),
    "deepspeed.config": ("config/test_deepspeed.py", "test_contradictions_are_errors"),
    "hardware.device": ("distributed/test_devices.py", "test_devices"),
    "hardware.threads": (
        "distributed/test_devices.py",
        "test_threads_are_those_asked_for_or_a_share_of_the_cores",
    ),
    "hardware.deterministic": ("engine/test_options.py", "test_deterministic_mode_repeats_itself"),
    "training.gradient_clip": ("engine/test_engine.py", "test_the_gradient_is_clipped_once"),
    "training.reduce_precision": ("engine/test_engine.py", "test_the_type_in_which_gradients_are_averaged"),
    "hardware.kernels": ("engine/test_options.py", "test_the_arithmetic_of_gpus_trains_alike"),
    "hardware.compile": ("engine/test_options.py", "test_the_gradients_of_a_compiled_encoder_agree"),
    "hardware.cuda_graphs": ("engine/test_cuda_graphs.py", "test_replayed_stages_train_bit_by_bit_alike"),
    "hardware.timeout_minutes": (
        "distributed/test_process_group.py",
        "test_a_collective_waits_as_long_as_timeout_minutes",
    ),
    "hardware.compare_ranks_every": ("engine/test_replicas.py", "test_without_the_comparison_it_would_go_on"),
    "training.reorder_after_divergence": ("training/test_reordering.py", "test_the_images_come_in_another_order"),
    "hardware.hang_timeout": ("distributed/test_hang_watch.py", "test_a_step_far_longer_than_those_before_is_a_hang"),
    "hardware.peer_timeout": ("distributed/test_peer_watch.py", "test_a_rank_that_stands_still_ends_the_others"),
}


def test_every_setting_is_looked_at() -> None:
    known = {*SHOWN, *ELSEWHERE}
    assert set(FIELDS) - known == set()


@pytest.mark.parametrize("dotted", sorted(SHOWN))
def test_a_setting_changes_something_or_is_refused(dotted: str, spark_root: Path) -> None:
    one = SHOWN[dotted]
    tiny = () if any(need.startswith("model.") for need in one.needs) else TINY_SETTINGS
    usual = [f"data.root={spark_root}", "data.image_size=64", *PLAIN, *tiny]
    changed = f"{dotted}={one.value}"

    def configured(*overrides: str) -> Config:
        return load_config(overrides=[*usual, *overrides]).config

    before, after = (one.probe(configured(*one.needs, *extra)) for extra in ((), (changed,)))
    assert before != after
    if dotted in CONDITIONAL:
        assert dotted not in without_effect(configured(*one.needs, changed))
        unmet = CONDITIONAL[dotted]
        with pytest.raises(ConfigError, match=rf"--set {dotted}: it has no effect here"):
            refuse_without_effect([changed], load_config(overrides=[*unmet, changed]).config)


@pytest.mark.parametrize("dotted", sorted(ELSEWHERE))
def test_other_tests_show_the_rest(dotted: str) -> None:
    file, name = ELSEWHERE[dotted]
    assert re.search(rf"^def {name}\b", (TESTS / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def test_every_condition_is_tried() -> None:
    conditional = {dotted for condition in effect._CONDITIONS for dotted in condition.dotted}
    assert conditional == set(CONDITIONAL)


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("inference.window=512", "a window smaller than data.image_size"),
        ("inference.overlap=0.5", "inference.window"),
        ("training.loss.focal_gamma=1", "training.loss.type focal or focal_dice"),
        ("training.scheduler.power=0.9", "training.scheduler.type warmup_poly"),
        ("augmentation.crop.margin=1", "augmentation.crop.mode box"),
        ("model.custom.decoder_size=8", "model.variant custom"),
    ],
)
def test_what_is_needed_is_named(override: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"--set {override.partition('=')[0]}: it has no effect here. It needs .*{needed}"
    ):
        refuse_without_effect([override], load_config(overrides=[override]).config)
    dotted, _, value = override.partition("=")
    *sections, leaf = dotted.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    (tmp_path / "x.yaml").write_text("\n".join([*lines, f"{'  ' * len(sections)}{leaf}: {value}"]))
    assert list(without_effect(load_config(tmp_path / "x.yaml").config)) == [dotted], "of a file training names it"


def test_the_command_line_refuses_them(spark_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", f"data.root={spark_root}", "--set", "inference.window=512")
    assert leave("train", *settings, "--dry-run", "--no-measure") == 2
    assert leave("data", "preview", *settings, "--out", "x.png") == 2
    assert (
        capsys.readouterr().err.count("--set inference.window: it has no effect here. It needs a window smaller") == 2
    )


def test_a_window_that_slides() -> None:
    for overrides in (("inference.window=256",), ("inference.window=512", "inference.resize=native")):
        assert without_effect(load_config(overrides=overrides).config) == {}


@pytest.mark.parametrize("path", sorted((TESTS.parent / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_that_are_shipped(path: Path) -> None:
    assert without_effect(load_config(path).config) == {}
