"""The estimate as a table: every implementation's step, and what the time of this package's is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segformer_spark.bench.roofline.device_models import DeviceModel
from segformer_spark.bench.roofline.host_time import host_ratio, host_times
from segformer_spark.bench.roofline.steps import AUTOCAST, StepSpec, trace_inference, trace_steps
from segformer_spark.bench.roofline.trace import Trace
from segformer_spark.bench.workload import OURS
from segformer_spark.config.image_size import size_text
from segformer_spark.files.atomic import write_json
from segformer_spark.run.record import command_record, scrub, software_record


@dataclass(frozen=True)
class Part:
    """What one kind of operation takes of a step: milliseconds, gigabytes, kernels."""

    name: str
    ms: float
    gb: float
    kernels: int


def parts(trace: Trace, device: DeviceModel, *, tf32: bool) -> list[Part]:
    """The kinds of operations, the longest first."""
    found: dict[str, list[float]] = {}
    for operation in trace.operations:
        own = found.setdefault(operation.name, [0.0, 0.0, 0.0])
        own[0] += 1e3 * device.seconds(operation.cost, tf32=tf32)
        own[1] += (operation.cost.read + operation.cost.written) / 1e9
        own[2] += operation.cost.launches
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return [Part(name, ms, gb, int(kernels)) for name, (ms, gb, kernels) in ordered]


def estimate(
    spec: StepSpec, device: DeviceModel, *, infer: bool, top: int, host: bool, output: Path | None
) -> Iterator[str]:
    """The lines of the table.

    Args:
        infer: inference to class ids at twice the images' size, in place of a training step.
        top: how many kinds of operations to list.
        host: measure the host's time, too.
        output: JSON file for everything.
    """
    traces, tf32 = (trace_inference if infer else trace_steps)(spec), spec.precision == "tf32"
    listed = {name: parts(trace, device, tf32=tf32) for name, trace in traces.items()}
    own = sum(part.ms for part in listed[OURS])
    yield (
        f"estimated {'inference' if infer else 'training step'}: SegFormer-{spec.variant.upper()}, "
        f"{spec.batch} x {size_text(spec.image_size)} px, "
        f"{spec.classes} classes, {spec.precision}, {device.name}"
    )
    yield f"{'':<34}{'ms':>8}{'ratio':>7}{'GB':>7}{'kernels':>9}{'dispatches':>12}{'GiB':>7}  host syncs"
    for name, trace in traces.items():
        total = sum(part.ms for part in listed[name])
        waits = ", ".join(f"{what} x {count}" for what, count in sorted(trace.host_syncs.items())) or "0"
        label = f"{name}, kernels {spec.kernels}" if name == OURS else name
        yield (
            f"{label:<34}{total:>8.1f}{total / own:>7.2f}{trace.moved_bytes / 1e9:>7.1f}{trace.launches:>9}"
            f"{trace.dispatches:>12}{trace.peak_bytes / 2**30:>7.2f}  {waits}"
        )
    yield f"the longest operations of {OURS}:"
    for part in listed[OURS][:top]:
        yield f"  {part.name:<60}{part.ms:>8.2f}{part.gb:>14.2f}{part.kernels:>9}"
    seconds = host_times(spec) if host else None
    if seconds is not None:
        yield f"host time on tiny inputs, measured here: {host_ratio(seconds):.2f} of transformers' (autocast)"
    yield (
        f"An estimate: {100 * device.flops_share:.0f} % of the peak, {100 * device.bandwidth_share:.0f} % of the "
        f"bandwidth, {1e6 * device.kernel_seconds:.0f} us per kernel; {device.source}"
    )
    if output is not None:
        write_json(output, scrub(_record(spec, device, traces, listed, seconds)))
        yield f"everything that was counted: {output}"


def _record(
    spec: StepSpec,
    device: DeviceModel,
    traces: Mapping[str, Trace],
    listed: Mapping[str, list[Part]],
    seconds: Mapping[str, list[float]] | None,
) -> dict[str, Any]:
    return {
        "kind": "estimate",
        "step": asdict(spec),
        "device_model": asdict(device),
        "implementations": {
            name: {
                "ms": sum(part.ms for part in listed[name]),
                "gb": trace.moved_bytes / 1e9,
                "gflop": trace.flops / 1e9,
                "kernels": trace.launches,
                "dispatches": trace.dispatches,
                "peak_gib": trace.peak_bytes / 2**30,
                "host_syncs": dict(trace.host_syncs),
                "parts": [asdict(part) for part in listed[name]],
            }
            for name, trace in traces.items()
        },
        "host_seconds": None if seconds is None else {name: seconds[name] for name in (OURS, AUTOCAST)},
        "record": {"command": command_record(), "software": software_record()},
    }
