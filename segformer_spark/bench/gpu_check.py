"""`make gpu-check`: the tests that want a GPU and the benchmarks, in one JSON file and a table with its name."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segformer_spark.bench.benchmarks import PRODUCTS, model_benchmark
from segformer_spark.bench.capacity import capacity_lines, feeding, largest_batch
from segformer_spark.bench.interleaved import Benchmark, Row, as_json, compare, peak_of
from segformer_spark.bench.roofline.device_models import DEVICE_MODELS, DeviceModel
from segformer_spark.bench.roofline.report import parts
from segformer_spark.bench.roofline.steps import StepSpec, trace_steps
from segformer_spark.bench.workload import OURS, ModelSpec
from segformer_spark.errors import UserError
from segformer_spark.run.atomic import write_json, write_text
from segformer_spark.run.record import command_record, host_record, scrub, software_record
from segformer_spark.run.system import now

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
class Measured:
    """One benchmark's rows, beside what the estimate says of the same step."""

    benchmark: Benchmark
    rows: Sequence[Row]
    estimated_ratio: float | None


def main() -> None:
    """Run everything; ends with status 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no benchmark after (default: %(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: make gpu-check: torch sees no GPU (nvidia-smi shows the driver's view)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tests = run_tests(arguments.output / "tests.xml")
    measured: list[Measured] = []
    skipped: list[str] = []
    for spec in _BENCHMARKS:
        title = " ".join(map(str, spec))
        if time.monotonic() - started > 60 * arguments.minutes:
            skipped.append(title)
            continue
        print(f"benchmark: {title}", flush=True)
        measured.append(measure(spec, device_model(torch.cuda.get_device_name())))
    largest = [batches for variant in _LARGEST_OF if (batches := largest_batch(variant, arguments.output)) is not None]
    fed = feeding(arguments.output / "loader", training_rates(measured))
    record = {
        "ended": now(),
        "hardware": host_record(torch.device("cuda", 0)),
        "software": software_record(),
        "command": command_record(),
        "tests": tests,
        "benchmarks": [as_json(one.benchmark, one.rows, estimated_ratio=one.estimated_ratio) for one in measured],
        "left_out_for_time": skipped,
        "largest_batches": [asdict(batches) for batches in largest],
        "loader": None if fed is None else asdict(fed),
    }
    write_json(arguments.output / "gpu_check.json", scrub(record))
    lines = [*table(torch.cuda.get_device_name(), tests, measured, skipped), *capacity_lines(largest, fed)]
    write_text(arguments.output / "gpu_check.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"wrote: {arguments.output / 'gpu_check.json'}, {arguments.output / 'gpu_check.md'}")
    raise SystemExit(1 if tests["failed"] else 0)


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
    kind, variant, batch, side, classes, precision = benchmark
    spec = ModelSpec(
        kind="train" if kind == "train" else "infer",
        variant=variant,
        batch=batch,
        image_size=side,
        classes=classes,
        precision=precision,
        device="cuda",
    )
    whole = model_benchmark(spec)
    kept = {name: own for name, own in whole.workloads.items() if name not in _LEFT_OUT}
    if spec.kind == "train" and precision == "bf16":
        kept |= more_ways(spec, compiled=benchmark == _BENCHMARKS[0])
    whole = replace(whole, workloads=kept)
    rows = compare(whole, _ROUNDS)
    estimated = None
    if kind == "train" and model is not None:
        estimated = estimated_ratio(StepSpec(variant, batch, side, classes, precision, "gpu"), model)
    return Measured(whole, rows, estimated)


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


def estimated_ratio(spec: StepSpec, model: DeviceModel) -> float:
    """transformers' time over this package's, by the estimate."""
    tf32 = spec.precision == "tf32"
    traces = trace_steps(spec)
    own, theirs = (sum(part.ms for part in parts(traces[name], model, tf32=tf32)) for name in (OURS, spec.library))
    return theirs / own


def table(device: str, tests: dict[str, Any], measured: Sequence[Measured], skipped: Sequence[str]) -> Iterator[str]:
    """Markdown for docs/performance.md."""
    failed = ", ".join(tests["failed"]) or "none"
    yield f"{device}: {tests['passed']} tests passed, failed: {failed}, skipped: {len(tests['skipped'])}"
    yield ""
    yield "| step | implementation | images/s | ms | time relative to ours | estimated | GiB | share of peak |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in measured:
        peak = peak_of(one.rows, PRODUCTS)
        for row in one.rows:
            if row.name == PRODUCTS:
                continue
            estimated = one.estimated_ratio if row.name.startswith("transformers") else None
            share = "" if row.flops is None or peak is None else f"{100 * row.flops / row.median / peak:.0f} %"
            memory = "" if row.memory_mib is None else f"{row.memory_mib / 1024:.1f}"
            images = one.benchmark.images / row.median
            yield (
                f"| {one.benchmark.title} | {row.name} | {images:.1f} | {1000 * row.median:.1f} | {row.ratio:.2f} | "
                f"{'' if estimated is None else f'{estimated:.2f}'} | {memory} | {share} |"
            )
    if skipped:
        yield ""
        yield f"Left out for time: {', '.join(skipped)}"


if __name__ == "__main__":
    main()
