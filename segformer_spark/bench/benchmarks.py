"""The contests of `bench`: which contestants, with which tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segformer_spark.bench.pairs import Contest, Task
from segformer_spark.bench.rendered import rendered_cache, rendered_set
from segformer_spark.bench.tasks import OURS
from segformer_spark.config.deepspeed import stage_of

LIGHT_AUGMENTATION = (
    "augmentation.horizontal_flip=0.5",
    "augmentation.vertical_flip=0",
    "augmentation.affine=0",
    "augmentation.color=0",
    "augmentation.blur=0",
    "augmentation.coarse_dropout=0",
)
PRODUCTS = "matrix products (peak)"


@dataclass(frozen=True)
class ModelOptions:
    """What a training or inference contest is about."""

    variant: str
    image_size: int
    batch: int
    classes: int
    precision: str
    device: str
    zero_stage: int = 0
    recompute: bool = False
    compile: bool = False
    tf32: bool = False

    def task(self, kind: str, who: str, **more: Any) -> Task:
        return {"kind": kind, "who": who, **self.__dict__, **more}


def model_contest(kind: str, options: ModelOptions) -> Contest:
    """`train` or `infer`: this package, transformers with SDPA and eager attention, smp, and the machine's peak; for
    `train` the seed's step, too.

    On a CPU transformers and smp take part once more with the allocator's settings that this package makes.
    torch.compile is for all models, activation checkpointing for this package's alone.
    """
    tasks = {
        OURS: options.task(kind, OURS),
        "transformers SDPA": options.task(kind, "transformers", attention="sdpa"),
        "transformers eager": options.task(kind, "transformers", attention="eager"),
        PRODUCTS: options.task("products", OURS),
    }
    if kind == "train":
        tasks["seed's way"] = options.task(kind, "seed", attention="sdpa")
    tasks["smp"] = options.task(kind, "smp")
    if options.device == "cpu":
        for name in ("transformers SDPA", "smp"):
            tasks[f"{name}, memory kept"] = {**tasks[name], "keep_memory": True}
    what = "training step" if kind == "train" else "inference"
    title = (
        f"{what}: SegFormer-{options.variant.upper()}, {options.batch} x {options.image_size} px, "
        f"{options.classes} classes, {options.precision}"
    )
    return Contest(title, tasks, options.batch)


def zero_contest(options: ModelOptions, ranks: int, files: Sequence[Path] = ()) -> Contest:
    """A training step under ZeRO-1 and ZeRO-2 against stage 0, which is DDP, on local ranks.

    Args:
        files: more DeepSpeed configurations to compare, as `deepspeed.config` takes them.

    Raises:
        ConfigError: a file cannot be read.
    """
    tasks = {
        f"ZeRO stage {stage}": replace(options, zero_stage=stage).task("train", OURS, ranks=ranks)
        for stage in (0, 1, 2)
    }
    for file in files:
        own = replace(options, zero_stage=stage_of(file))
        tasks[str(file)] = own.task("train", OURS, ranks=ranks, deepspeed=str(file))
    title = (
        f"training step: SegFormer-{options.variant.upper()}, {ranks} ranks x {options.batch} x "
        f"{options.image_size} px, {options.classes} classes, {options.precision}"
    )
    return Contest(title, tasks, ranks * options.batch)


def loss_contest(image_size: int, batch: int, classes: int) -> Contest:
    """CE + Dice from quarter-size logits, and its gradient."""
    shared = {"kind": "loss", "keep_memory": True, "image_size": image_size, "batch": batch, "classes": classes}
    tasks = {OURS: {**shared, "who": OURS}, "full-size logits": {**shared, "who": "full size"}}
    return Contest(f"CE + Dice: {batch} x {image_size} px, {classes} classes", tasks, batch)


def evaluate_contest(image_size: int, images: int, classes: int) -> Contest:
    """Counting predicted against true labels."""
    shared = {"kind": "evaluate", "keep_memory": True, "image_size": image_size, "images": images, "classes": classes}
    tasks = {OURS: {**shared, "who": OURS}, "mean IoU in NumPy": {**shared, "who": "numpy"}}
    return Contest(f"metric: {image_size} x {image_size} px, {classes} classes", tasks, images)


def loader_contest(folder: Path, native: int, image_size: int, images: int, source: str = "files") -> Contest:
    """Decoding and light augmentation on one core, of a rendered set.

    Args:
        source: what this package reads: files, files with `data.reduced_decode` ("reduced"), or a cache ("cache").
    """
    root = rendered_set(folder, native, images)
    own = {
        "files": [],
        "reduced": ["data.reduced_decode=true"],
        "cache": [f"data.cache={rendered_cache(root, image_size)}"] if source == "cache" else [],
    }
    shared = {
        "kind": "loader",
        "keep_memory": True,
        "root": str(root),
        "image_size": image_size,
        "images": images,
        "threads": 1,
    }
    tasks: dict[str, Task] = {
        OURS: {**shared, "who": OURS, "settings": [*LIGHT_AUGMENTATION, *own[source]]},
        "seed's way": {**shared, "who": "seed", "settings": list(LIGHT_AUGMENTATION)},
    }
    return Contest(f"loader: {native} -> {image_size} px from {source}, one core", tasks, images)
