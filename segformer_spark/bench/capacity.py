"""How many images fit on a GPU, and how many cores must load images to feed it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segformer_spark.bench.benchmarks import loader_benchmark
from segformer_spark.bench.interleaved import compare
from segformer_spark.bench.rendered import rendered_set
from segformer_spark.bench.workload import OURS

_ROUNDS = 5
_FILES = (1024, 32)
"""Side in pixels and number of the images that are loaded."""


@dataclass(frozen=True)
class LargestBatch:
    """The largest micro-batch, of the powers of two, that `tune batch-size` found to fit, in bf16 at 512 px."""

    variant: str
    micro_batch: int
    images_per_s: float
    memory_gib: float


def largest_batch(variant: str, folder: Path, *, largest: int = 1024, image_size: int = 512) -> LargestBatch | None:
    """Up to `largest` images; None where not even one image fits, or the search failed: its output says why."""
    output = folder / f"batches_{variant}"
    settings = (
        f"model.variant={variant}",
        "model.pretrained=none",
        "training.precision=bf16",
        f"data.image_size={image_size}",
        f"data.root={rendered_set(folder / 'loader', *_FILES)}",
    )
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-m", "segformer_spark", "tune", "batch-size", "--output", str(output), *chosen]
    done = subprocess.run([*command, "--largest", str(largest)], check=False)
    table_file = output / "batch_size.csv"
    if done.returncode != 0 or not table_file.is_file():
        return None
    with table_file.open(encoding="utf-8", newline="") as stream:
        *_, last = csv.DictReader(stream)
    return LargestBatch(
        variant, int(last["micro_batch"]), float(last["images_per_s"]), round(float(last["memory_gib"]), 2)
    )


@dataclass(frozen=True)
class Feeding:
    """What decoding and light augmentation of 1024 px files need to keep up with the fastest step of 512 px.

    Attributes:
        images_per_s: of one core, from files and from a cache.
        step: title of the benchmark that trains fastest, and its images per second.
    """

    images_per_s: dict[str, float]
    step: tuple[str, float]

    def cores(self, source: str) -> float:
        """How many cores feed the step."""
        return self.step[1] / self.images_per_s[source]


def feeding(folder: Path, steps: Mapping[str, float]) -> Feeding | None:
    """Measure the loader on one core; None without a step to feed.

    Args:
        steps: {title: images per second} of training steps.
    """
    if not steps:
        return None
    rates = {}
    for source in ("files", "cache"):
        benchmark = loader_benchmark(folder, _FILES[0], 512, _FILES[1], source)
        own = replace(benchmark, workloads={OURS: benchmark.workloads[OURS]})
        rates[source] = _FILES[1] / compare(own, _ROUNDS)[0].median
    return Feeding(rates, max(steps.items(), key=lambda step: step[1]))


def capacity_lines(largest: Sequence[LargestBatch], fed: Feeding | None) -> Iterator[str]:
    """Largest batches and what the loader needs, in Markdown."""
    if largest:
        yield ""
        yield "| variant | largest micro-batch (bf16, 512 px) | images/s of its pass | GiB |"
        yield "|---|---|---|---|"
        for one in largest:
            yield f"| {one.variant} | {one.micro_batch} | {one.images_per_s:.1f} | {one.memory_gib:.1f} |"
    if fed is not None:
        yield ""
        for source, rate in fed.images_per_s.items():
            yield (
                f"One core loads {rate:.1f} images/s from {source}: {fed.cores(source):.1f} cores feed "
                f"{fed.step[1]:.0f} images/s ({fed.step[0]})"
            )
