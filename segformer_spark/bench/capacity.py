"""What a GPU can do beside a step: its memory's bandwidth, how many images fit, how many cores must load to feed it."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from segformer_spark.bench.benchmarks import loader_benchmark
from segformer_spark.bench.interleaved import compare
from segformer_spark.bench.rendered import rendered_set
from segformer_spark.bench.workload import OURS

_ROUNDS = 5
_FILES = (1024, 32)
"""Side in pixels and number of the images that are loaded."""


def copy_bandwidth(device: torch.device, num_bytes: int = 2**30, repeats: int = 10) -> float:
    """Bytes per second of a copy within the device's memory, read and written, the fastest of three rounds."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(4):  # the first does not count
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * num_bytes * repeats / min(seconds[1:])


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
        benchmark = loader_benchmark(folder, _FILES[0], (512, 512), _FILES[1], source)
        own = replace(benchmark, workloads={OURS: benchmark.workloads[OURS]})
        rates[source] = _FILES[1] / compare(own, _ROUNDS)[0].median
    return Feeding(rates, max(steps.items(), key=lambda step: step[1]))


def capacity_lines(largest: Sequence[LargestBatch], fed: Sequence[Feeding]) -> Iterator[str]:
    """Largest batches and what the loader needs, in Markdown."""
    if largest:
        yield ""
        yield "| variant | largest micro-batch (bf16, 512 px) | images/s of its pass | GiB |"
        yield "|---|---|---|---|"
        for row in largest:
            yield f"| {row.variant} | {row.micro_batch} | {row.images_per_s:.1f} | {row.memory_gib:.1f} |"
    for one in fed:
        yield ""
        for source, rate in one.images_per_s.items():
            title, needed = one.step
            yield (
                f"One core loads {rate:.1f} images/s from {source}: {one.cores(source):.1f} cores feed {needed:.0f} "
                f"images/s ({title})"
            )
