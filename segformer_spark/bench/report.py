"""Runs a contest and tells about it: a table, and a file with the machine's record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from segformer_spark.bench.contests import PRODUCTS
from segformer_spark.bench.pairs import Contest, as_json, compare, table
from segformer_spark.distributed.process_group import choose_device
from segformer_spark.errors import UserError
from segformer_spark.run.atomic import write_json
from segformer_spark.run.record import command_record, host_record, scrub, software_record
from segformer_spark.run.system import now


def run_contest(contest: Contest, pairs: int, without: Sequence[str], output: Path | None) -> Iterator[str]:
    """Measure; yields the table's lines.

    Args:
        without: names of contestants to leave out.
        output: JSON file for everything that was measured.

    Raises:
        UserError: no such contestant, or one that cannot work.
    """
    unknown = set(without) - set(contest.tasks)
    if unknown:
        known = ", ".join(contest.tasks)
        raise UserError(f"--without {', '.join(sorted(unknown))}: the contestants are {known}")
    contest = replace(contest, tasks={name: task for name, task in contest.tasks.items() if name not in without})
    started = now()
    rows = compare(contest, pairs)
    peak = next((row.flops / row.median for row in rows if row.name == PRODUCTS and row.flops), None)
    hosts = host_record(choose_device(next(iter(contest.tasks.values())).get("device", "cpu"), 0))
    yield from table(contest, rows, peak)
    yield f"{pairs} rounds by turns; ratio: time over the first row's in the same round, median and range"
    yield f"{hosts.get('gpu', hosts['cpu'])}, {hosts['cpu_cores']} cores, {hosts['memory_gib']} GiB"
    if output is not None:
        record = {"started": started, "ended": now(), "command": command_record(), "hardware": hosts}
        record["software"] = software_record()
        write_json(output, scrub(as_json(contest, rows, peak_flops_per_s=peak, record=record)))
        yield f"everything that was measured: {output}"
