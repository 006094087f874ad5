"""Runs a benchmark and reports it: a table, and a file with the machine's record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from segformer_spark.bench.benchmarks import PRODUCTS
from segformer_spark.bench.interleaved import Benchmark, as_json, compare, peak_of, table
from segformer_spark.distributed.devices import choose_device
from segformer_spark.errors import UserError
from segformer_spark.files.atomic import write_json
from segformer_spark.run.record import command_record, host_record, scrub, software_record
from segformer_spark.run.system import now


def run_benchmark(benchmark: Benchmark, rounds: int, exclude: Sequence[str], output: Path | None) -> Iterator[str]:
    """Measure; yields the table's lines.

    Args:
        exclude: names of implementations to leave out.
        output: JSON file for everything that was measured.

    Raises:
        UserError: no such implementation, or one that cannot run.
    """
    unknown = set(exclude) - set(benchmark.workloads)
    if unknown:
        known = ", ".join(benchmark.workloads)
        raise UserError(f"--exclude {', '.join(sorted(unknown))}: the implementations are {known}")
    kept = {name: spec for name, spec in benchmark.workloads.items() if name not in exclude}
    benchmark = replace(benchmark, workloads=kept)
    started = now()
    rows = compare(benchmark, rounds)
    peak = peak_of(rows, PRODUCTS)
    hosts = host_record(choose_device(next(iter(kept.values())).device, 0))
    yield from table(benchmark, rows, peak)
    yield f"{rounds} interleaved rounds; ratio: time over the first row's in the same round, median and range"
    yield f"{hosts.get('gpu', hosts['cpu'])}, {hosts['cpu_cores']} cores, {hosts['memory_gib']} GiB"
    if output is not None:
        record = {"started": started, "ended": now(), "command": command_record(), "hardware": hosts}
        record["software"] = software_record()
        write_json(output, scrub(as_json(benchmark, rows, peak_flops_per_s=peak, record=record)))
        yield f"everything that was measured: {output}"
