"""The benchmarks of `bench`: which implementations are compared, on which workloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segformer_spark.bench.interleaved import Benchmark
from segformer_spark.bench.rendered import rendered_cache, rendered_set
from segformer_spark.bench.workload import OURS, LoaderSpec, LossSpec, MetricSpec, ModelSpec, Spec
from segformer_spark.config.deepspeed import stage_of
from segformer_spark.config.image_size import Size, size_text

LIGHT_AUGMENTATION = (
    "augmentation.horizontal_flip=0.5",
    "augmentation.vertical_flip=0",
    "augmentation.affine=0",
    "augmentation.color=0",
    "augmentation.blur=0",
    "augmentation.coarse_dropout=0",
)
PRODUCTS = "matrix products (peak)"
ORIGINAL = "original implementation"


def model_benchmark(spec: ModelSpec) -> Benchmark:
    """Training or inference: this package, transformers with SDPA and eager attention, smp, and the machine's peak; for
    training the step of the original implementation, too.

    On a CPU transformers and smp take part once more with the allocator's settings that this package makes.
    torch.compile is for all models, activation checkpointing and CUDA graphs are for this package's alone.
    """

    def of(implementation: str, **changes: object) -> ModelSpec:
        return spec.model_copy(update={"implementation": implementation, **changes})

    workloads: dict[str, Spec] = {
        OURS: spec,
        "transformers SDPA": of("transformers"),
        "transformers eager": of("transformers", attention="eager"),
        PRODUCTS: of(OURS, kind="matrix_products"),
    }
    if spec.kind == "train":
        workloads[ORIGINAL] = of("original")
    workloads["smp"] = of("smp")
    if spec.device == "cpu":
        for name in ("transformers SDPA", "smp"):
            workloads[f"{name}, memory kept"] = workloads[name].model_copy(update={"keep_memory": True})
    what = "training step" if spec.kind == "train" else "inference"
    title = (
        f"{what}: SegFormer-{spec.variant.upper()}, {spec.batch} x {size_text(spec.image_size)} px, "
        f"{spec.classes} classes, {spec.precision}"
    )
    return Benchmark(title, workloads, spec.batch)


def zero_benchmark(spec: ModelSpec, files: Sequence[Path] = ()) -> Benchmark:
    """A training step under ZeRO-1 and ZeRO-2 against stage 0, which is DDP, on `spec.ranks` local ranks.

    Args:
        files: more DeepSpeed configurations to compare, as `deepspeed.config` takes them.

    Raises:
        ConfigError: a file cannot be read.
    """
    workloads: dict[str, Spec] = {
        f"ZeRO stage {stage}": spec.model_copy(update={"zero_stage": stage}) for stage in (0, 1, 2)
    }
    for file in files:
        workloads[str(file)] = spec.model_copy(update={"zero_stage": stage_of(file), "deepspeed": str(file)})
    title = (
        f"training step: SegFormer-{spec.variant.upper()}, {spec.ranks} ranks x {spec.batch} x "
        f"{size_text(spec.image_size)} px, {spec.classes} classes, {spec.precision}"
    )
    return Benchmark(title, workloads, spec.ranks * spec.batch)


def loss_benchmark(image_size: Size, batch: int, classes: int) -> Benchmark:
    """CE + Dice from quarter-size logits, and its gradient."""
    spec = LossSpec(image_size=image_size, batch=batch, classes=classes, keep_memory=True)
    full_size = spec.model_copy(update={"implementation": "full size"})
    title = f"CE + Dice: {batch} x {size_text(image_size)} px, {classes} classes"
    return Benchmark(title, {OURS: spec, "full-size logits": full_size}, batch)


def metric_benchmark(image_size: Size, images: int, classes: int) -> Benchmark:
    """Counting predicted against true labels."""
    spec = MetricSpec(image_size=image_size, images=images, classes=classes, keep_memory=True)
    numpy = spec.model_copy(update={"implementation": "numpy"})
    title = f"metric: {size_text(image_size)} px, {classes} classes"
    return Benchmark(title, {OURS: spec, "mean IoU in NumPy": numpy}, images)


def loader_benchmark(folder: Path, native: int, image_size: Size, images: int, source: str = "files") -> Benchmark:
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
    original = LoaderSpec(
        implementation="original",
        root=str(root),
        image_size=image_size,
        images=images,
        threads=1,
        keep_memory=True,
        settings=LIGHT_AUGMENTATION,
    )
    ours = original.model_copy(update={"implementation": OURS, "settings": (*LIGHT_AUGMENTATION, *own[source])})
    title = f"loader: {native} -> {size_text(image_size)} px from {source}, one core"
    return Benchmark(title, {OURS: ours, ORIGINAL: original}, images)
