"""`make gpu-check`: the tests that want a GPU and the benchmarks, in one JSON file and a table with its name."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from segformer_spark.bench.benchmarks import PRODUCTS, model_benchmark
from segformer_spark.bench.capacity import capacity_lines, copy_bandwidth, feeding, largest_batch
from segformer_spark.bench.interleaved import Benchmark, Row, as_json, compare, peak_of
from segformer_spark.bench.roofline.device_models import DEVICE_MODELS, DeviceModel
from segformer_spark.bench.roofline.report import parts
from segformer_spark.bench.roofline.steps import StepSpec, trace_steps
from segformer_spark.bench.workload import OURS, ModelSpec
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_json, write_text
from segformer_spark.run.record import command_record, host_record, scrub, software_record
from segformer_spark.run.system import now

T = TypeVar("T")

_ROUNDS = 5
_BENCHMARKS = (
    ("train", "b2", 8, 512, 3, "bf16"),
    ("train", "b2", 8, 512, 3, "fp32"),
    ("train", "b2", 8, 512, 3, "tf32"),
    ("train", "b2", 4, 512, 150, "bf16"),
    ("train", "b0", 16, 512, 3, "bf16"),
    ("train", "b5", 4, 768, 3, "bf16"),
    ("infer", "b2", 8, 512, 3, "bf16"),
)
"""Kind, variant, batch, pixels, classes, precision: the rows of docs/performance.md's estimate."""

_LEFT_OUT = ("transformers eager", "smp", "original implementation")
"""Slower than what stays, and there are eight minutes for all."""

_LARGEST_OF = ("b0", "b2", "b5")


@dataclass(frozen=True)
class Estimate:
    """What `bench roofline` says of a training step.

    Attributes:
        ratio: transformers' time over this package's; None for a card without a data sheet here.
        moved_bytes: of this package's step.
    """

    ratio: float | None
    moved_bytes: float


@dataclass(frozen=True)
class Measured:
    """One benchmark's rows, beside the estimate of the same step."""

    benchmark: Benchmark
    rows: Sequence[Row]
    estimate: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for a file."""
        return as_json(self.benchmark, self.rows, estimate=None if self.estimate is None else asdict(self.estimate))


def main() -> None:
    """Run everything; ends with status 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no benchmark after (default: %(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: make gpu-check: torch sees no GPU (nvidia-smi shows the driver's view)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    attempts = Attempts(time.monotonic() + 60 * arguments.minutes)
    tests = run_tests(arguments.output / "tests.xml")
    model = device_model(torch.cuda.get_device_name())
    bandwidth = copy_bandwidth(torch.device("cuda", 0))
    measured: list[Measured] = []
    for spec in _BENCHMARKS:
        measured += attempts.run(" ".join(map(str, spec)), partial(measure, spec, model))
    largest = []
    for variant in _LARGEST_OF:
        largest += attempts.run(f"largest batch of {variant}", partial(largest_batch, variant, arguments.output))
    fed = attempts.run("loader", partial(feeding, arguments.output / "loader", training_rates(measured)))
    for spec in (one for one in _BENCHMARKS if one[0] == "train" and one[-1] == "bf16"):
        measured += attempts.run(" ".join(map(str, (*spec, "other ways"))), partial(measure_ways, spec))
    record = {
        "ended": now(),
        "hardware": host_record(torch.device("cuda", 0)),
        "software": software_record(),
        "command": command_record(),
        "tests": tests,
        "bandwidth": bandwidth,
        "benchmarks": [one.as_json() for one in measured],
        "left_out": attempts.left_out,
        "largest_batches": [asdict(batches) for batches in largest],
        "loader": [asdict(one) for one in fed],
    }
    write_json(arguments.output / "gpu_check.json", scrub(record))
    lines = list(table(torch.cuda.get_device_name(), bandwidth, tests, measured, attempts.left_out))
    lines += capacity_lines(largest, fed)
    write_text(arguments.output / "gpu_check.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"wrote: {arguments.output / 'gpu_check.json'}, {arguments.output / 'gpu_check.md'}")
    raise SystemExit(1 if tests["failed"] else 0)


class Attempts:
    """Runs one part after the other until there is no time left; a part that fails costs only itself.

    Attributes:
        left_out: {part: why there is no result}.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self.left_out: dict[str, str] = {}

    def run(self, title: str, part: Callable[[], T | None]) -> list[T]:
        """What the part gives, or nothing."""
        if time.monotonic() > self._deadline:
            self.left_out[title] = "no time was left"
            return []
        print(f"benchmark: {title}", flush=True)
        try:
            found = part()
        except UserError as error:
            self.left_out[title] = str(error)
            return []
        if found is None:
            self.left_out[title] = "it gave no result, see above"
            return []
        return [found]


def run_tests(report: Path) -> dict[str, Any]:
    """The tests marked `gpu`: how many passed, and the names of those that did not."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", f"--junitxml={report}"]
    subprocess.run(["env", "GPU_CHECK=1", *command], check=False)
    return counted(report)


def counted(report: Path) -> dict[str, Any]:
    """What a JUnit report says.

    Raises:
        UserError: the tests ended without one.
    """
    try:
        cases = ElementTree.parse(report).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{report}: the tests ended without a report ({error})") from error
    states: dict[str, str] = {}
    for case in cases:
        bad = case.find("failure") is not None or case.find("error") is not None
        left_out = case.find("skipped") is not None
        states[str(case.get("name"))] = "failed" if bad else "skipped" if left_out else "passed"
    found = {state: [name for name, own in states.items() if own == state] for state in ("failed", "skipped")}
    return {"passed": sum(own == "passed" for own in states.values()), **found}


def device_model(name: str) -> DeviceModel | None:
    """The data sheet of a GPU, by the name that CUDA gives it."""
    for part, key in (("A100-SXM4-40", "a100-40"), ("A100-PCIE-40", "a100-40"), ("A100", "a100-80"), ("H100", "h100")):
        if part in name:
            return DEVICE_MODELS[key]
    return DEVICE_MODELS["v100"] if "V100" in name else None


def measure(benchmark: tuple[str, str, int, int, int, str], model: DeviceModel | None) -> Measured:
    """Interleaved rounds on the GPU, and the estimate of the same step."""
    spec = model_spec(benchmark)
    whole = model_benchmark(spec)
    kept = {name: own for name, own in whole.workloads.items() if name not in _LEFT_OUT}
    whole = replace(whole, workloads=kept)
    rows = compare(whole, _ROUNDS)
    step = StepSpec(spec.variant, spec.batch, spec.image_size, spec.classes, spec.precision, "gpu")
    return Measured(whole, rows, estimate(step, model) if spec.kind == "train" else None)


def model_spec(benchmark: tuple[str, str, int, int, int, str]) -> ModelSpec:
    """A row of the table as a workload."""
    kind, variant, batch, side, classes, precision = benchmark
    return ModelSpec(
        kind="train" if kind == "train" else "infer",
        variant=variant,
        batch=batch,
        image_size=side,
        classes=classes,
        precision=precision,
        device="cuda",
    )


def measure_ways(benchmark: tuple[str, str, int, int, int, str]) -> Measured:
    """A bf16 step beside what may make it faster; a benchmark of its own, so that one that fails costs no other."""
    spec = model_spec(benchmark)
    title = f"{model_benchmark(spec).title}, other ways"
    whole = Benchmark(title, {OURS: spec, **more_ways(spec, compiled=benchmark == _BENCHMARKS[0])}, spec.batch)
    return Measured(whole, compare(whole, _ROUNDS), None)


def more_ways(spec: ModelSpec, *, compiled: bool) -> dict[str, ModelSpec]:
    """A bf16 step with CUDA graphs and of transformers in bf16 parameters; `compiled`: also with torch.compile."""
    theirs = spec.model_copy(update={"implementation": "transformers"})
    ways = {
        f"{OURS}, CUDA graphs": spec.model_copy(update={"cuda_graphs": "auto"}),
        "transformers, bf16 parameters": theirs.model_copy(update={"narrow_parameters": True}),
    }
    if compiled:
        ways |= {
            f"{OURS}, compile auto": spec.model_copy(update={"compile": "auto"}),
            "transformers, compiled": theirs.model_copy(update={"compile": "on"}),
        }
    return ways


def training_rates(measured: Sequence[Measured]) -> dict[str, float]:
    """{title: images per second of this package} of the training steps."""
    return {
        one.benchmark.title: one.benchmark.images / one.rows[0].median
        for one in measured
        if one.benchmark.title.startswith("training")
    }


def estimate(spec: StepSpec, model: DeviceModel | None) -> Estimate:
    """The estimate of a training step on a card, as far as its data sheet is known."""
    traces = trace_steps(spec)
    ratio = None
    if model is not None:
        tf32 = spec.precision == "tf32"
        own, theirs = (sum(part.ms for part in parts(traces[name], model, tf32=tf32)) for name in (OURS, spec.library))
        ratio = theirs / own
    return Estimate(ratio, traces[OURS].moved_bytes)


def table(
    device: str, bandwidth: float, tests: dict[str, Any], measured: Sequence[Measured], left_out: Mapping[str, str]
) -> Iterator[str]:
    """Markdown for docs/performance.md.

    Args:
        bandwidth: of the card's memory in bytes per second, as a copy has it.
    """
    failed = ", ".join(tests["failed"]) or "none"
    yield f"{device}: {tests['passed']} tests passed, failed: {failed}, skipped: {len(tests['skipped'])}"
    yield f"Memory bandwidth of a copy: {bandwidth / 1e9:.0f} GB/s"
    yield ""
    yield (
        "| step | implementation | images/s | ms | time relative to ours | estimated | GiB | share of peak "
        "| share of bandwidth |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in measured:
        peak = peak_of(one.rows, PRODUCTS)
        for row in one.rows:
            if row.name == PRODUCTS:
                continue
            ratio = one.estimate.ratio if one.estimate is not None and row.name.startswith("transformers") else None
            moved = one.estimate.moved_bytes if one.estimate is not None and row.name == OURS else None
            share = "" if row.flops is None or peak is None else f"{100 * row.flops / row.median / peak:.0f} %"
            memory = "" if row.memory_mib is None else f"{row.memory_mib / 1024:.1f}"
            images = one.benchmark.images / row.median
            yield (
                f"| {one.benchmark.title} | {row.name} | {images:.1f} | {1000 * row.median:.1f} | {row.ratio:.2f} | "
                f"{'' if ratio is None else f'{ratio:.2f}'} | {memory} | {share} | "
                f"{'' if moved is None else f'{100 * moved / row.median / bandwidth:.0f} %'} |"
            )
    if left_out:
        yield ""
        yield "Without a result:"
        yield ""
        yield from (f"- {title}: {reason}" for title, reason in left_out.items())


if __name__ == "__main__":
    main()
