"""Compare implementations in interleaved rounds: each has processes of its own, which run in turn, A B A B.

A machine's speed drifts by tens of per cent within minutes; the ratio of two neighbouring runs hardly does. The number
to quote is the median of the ratios of all rounds, with their range.
"""

from __future__ import annotations

import selectors
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from segformer_spark.bench.workload import Answer, Assignment, Spec
from segformer_spark.distributed.ports import unused_port
from segformer_spark.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """What is compared.

    Attributes:
        workloads: {name: specification}; the first is the one that the others are compared with.
        images: that one call works on.
    """

    title: str
    workloads: Mapping[str, Spec]
    images: int


@dataclass(frozen=True)
class Row:
    """One implementation's measurements.

    Attributes:
        seconds: of every call, in order; of the slowest rank.
        ratios: of every call, over the first implementation's call of the same round.
        memory_mib: highest resident memory above that after the imports, of the first rank; None where the system does
            not say.
        flops: of a call where they are known, forward and backward, 2 per multiply-add.
    """

    name: str
    seconds: Sequence[float]
    ratios: Sequence[float]
    memory_mib: float | None
    flops: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(benchmark: Benchmark, rounds: int) -> list[Row]:
    """Run all implementations once per round, after a call each that does not count.

    Raises:
        UserError: an implementation cannot run; its message is passed on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in benchmark.workloads}
    with ExitStack() as stack:
        teams = {name: stack.enter_context(_team(name, spec)) for name, spec in benchmark.workloads.items()}
        for _ in range(rounds):
            for name, team in teams.items():
                seconds[name].append(max(answer.seconds or 0.0 for answer in _ask(team, "run")))
        ends = {name: _ask(team, "end")[0] for name, team in teams.items()}
    first = next(iter(seconds.values()))
    return [
        Row(
            name,
            own,
            [time / reference for time, reference in zip(own, first, strict=True)],
            ends[name].memory_mib,
            ends[name].flops,
        )
        for name, own in seconds.items()
    ]


class _Worker:
    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name, self._process = name, process

    def tell(self, request: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it printed before it ended says why
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()

    @property
    def output(self) -> IO[str]:
        """Where its answers come from."""
        assert self._process.stdout is not None
        return self._process.stdout

    def answer(self) -> Answer:
        line = self.output.readline()
        answer = Answer.model_validate_json(line) if line else Answer(error=f"ended with {self._process.wait()}")
        if answer.error is not None:
            raise UserError(f"bench: {self._name}: {answer.error}")
        return answer


def _ask(team: Sequence[_Worker], request: str) -> list[Answer]:
    for worker in team:
        worker.tell(request)
    return _answers(team)


def _answers(team: Sequence[_Worker]) -> list[Answer]:
    """One of each, as they come: a rank that fails must be heard while the others wait for it."""
    answers: dict[int, Answer] = {}
    with selectors.DefaultSelector() as waiting:
        for rank, worker in enumerate(team):
            waiting.register(worker.output, selectors.EVENT_READ, rank)
        while len(answers) < len(team):
            for key, _ in waiting.select():
                answers[key.data] = team[key.data].answer()
                waiting.unregister(key.fileobj)
    return [answers[rank] for rank in range(len(team))]


@contextmanager
def _team(name: str, spec: Spec) -> Iterator[list[_Worker]]:
    with ExitStack() as stack:
        team = [stack.enter_context(_worker(name)) for _ in range(Assignment(spec=spec).num_ranks)]
        port = unused_port()
        for rank, worker in enumerate(team):
            worker.tell(Assignment(spec=spec, rank=rank, port=port).model_dump_json())
        _answers(team)
        yield team


@contextmanager
def _worker(name: str) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "segformer_spark.bench.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Worker(name, process)
        finally:
            process.kill()
            assert process.stdin is not None
            # A request that it did not live to read is still in the buffer.
            with suppress(BrokenPipeError):
                process.stdin.close()


def peak_of(rows: Sequence[Row], name: str) -> float | None:
    """FLOP/s of the row that measures the machine's peak; None without one."""
    return next((row.flops / row.median for row in rows if row.name == name and row.flops), None)


def table(benchmark: Benchmark, rows: Sequence[Row], peak_flops: float | None = None) -> list[str]:
    """Aligned lines: time, images per second, ratio with its spread, memory, share of the machine's peak."""
    lines = [
        benchmark.title,
        f"{'':<34}{'ms':>10}{'images/s':>12}{'ratio':>8}{'from':>7}{'to':>7}{'MiB':>8}{'peak':>7}",
    ]
    for row in rows:
        memory = "" if row.memory_mib is None else f"{row.memory_mib:.0f}"
        share = "" if row.flops is None or peak_flops is None else f"{100 * row.flops / row.median / peak_flops:.0f} %"
        lines.append(
            f"{row.name:<34}{1000 * row.median:>10.1f}{benchmark.images / row.median:>12.2f}{row.ratio:>8.2f}"
            f"{min(row.ratios):>7.2f}{max(row.ratios):>7.2f}{memory:>8}{share:>7}"
        )
    return lines


def as_json(benchmark: Benchmark, rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """Everything that was measured, ready for a file."""
    return {
        "title": benchmark.title,
        "images_per_call": benchmark.images,
        "workloads": {name: spec.model_dump(mode="json") for name, spec in benchmark.workloads.items()},
        "rows": [
            {
                **asdict(row),
                "median_seconds": row.median,
                "ratio": row.ratio,
                "ratio_range": [min(row.ratios), max(row.ratios)],
            }
            for row in rows
        ],
        **more,
    }
