"""Benchmarks at a tiny size: they run, and ratios are what they are said to be. No time is asserted."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.bench import interleaved
from segformer_spark.bench.benchmarks import (
    ORIGINAL,
    PRODUCTS,
    loader_benchmark,
    loss_benchmark,
    metric_benchmark,
    model_benchmark,
    zero_benchmark,
)
from segformer_spark.bench.implementation import build
from segformer_spark.bench.interleaved import Benchmark, Row, compare, table
from segformer_spark.bench.report import run_benchmark
from segformer_spark.bench.workload import OURS, Assignment, ModelSpec, Spec
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.distributed.ports import unused_port
from segformer_spark.errors import UserError
from tests.ranks import context, forked
from tests.verbs import run_verb

TINY = ModelSpec(kind="train", variant="b0", image_size=64, batch=1)


def in_forks(parts: list[Assignment]) -> list[tuple[bool, float | None]]:
    """What a worker does with its assignment, each in a fork of a warmed process: prepare, two calls, close."""
    queue = context.Queue()
    workers = [forked(_work, part, queue) for part in parts]
    answers = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(20)
    return answers


def _work(part: Assignment, queue: Any) -> None:
    try:
        workload = build(part)
        workload.load()
        workload.prepare()
        workload.run()
        workload.run()
        flops = workload.flops
        workload.close()
        queue.put((True, flops))
    except BaseException as error:  # noqa: BLE001 - reported to the test
        queue.put((False, repr(error)))


def works(spec: Spec) -> float | None:
    """The workload's FLOPs, once it has run."""
    port = unused_port()
    ranks = spec.ranks if isinstance(spec, ModelSpec) else 1
    answers = in_forks([Assignment(spec=spec, rank=rank, port=port) for rank in range(ranks)])
    assert all(ran for ran, _ in answers), answers
    assert len({flops for _, flops in answers}) == 1
    return answers[0][1]


def test_ratios_are_pairwise_and_their_median_is_quoted() -> None:
    benchmark = Benchmark("title", {}, 4)
    seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}
    rows = [
        Row(name, own, [t / r for t, r in zip(own, seconds["a"], strict=True)], 12.0, 8.0)
        for name, own in seconds.items()
    ]
    assert rows[1].ratio == 2.0
    first, second = table(benchmark, rows, peak_flops=8.0)[2:]
    assert first.split() == ["a", "2000.0", "2.00", "1.00", "1.00", "1.00", "12", "50", "%"]
    assert second.split() == ["b", "2000.0", "2.00", "2.00", "1.00", "3.00", "12", "50", "%"]


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["train", "infer"])
def test_implementations_of_a_model_benchmark_run(kind: str) -> None:
    benchmark = model_benchmark(TINY.model_copy(update={"kind": kind}))
    kept = benchmark.workloads["transformers SDPA, memory kept"]
    assert kept == benchmark.workloads["transformers SDPA"].model_copy(update={"keep_memory": True})
    assert (ORIGINAL in benchmark.workloads) == (kind == "train")
    skipped = ("smp", "transformers eager", "smp, memory kept")
    flops = {name: works(spec) for name, spec in benchmark.workloads.items() if name not in skipped}
    assert {name for name, known in flops.items() if known} == {OURS, PRODUCTS}


@pytest.mark.parametrize("make", [loss_benchmark, metric_benchmark], ids=["loss", "metric"])
def test_loss_and_metric_benchmarks_run(make: Callable[[tuple[int, int], int, int], Benchmark]) -> None:
    for spec in make((32, 64), 1, 3).workloads.values():
        works(spec)


@pytest.mark.parametrize("source", ["files", "reduced", "cache"])
def test_the_loader_benchmark_renders_its_set_once(source: str, tmp_path: Path) -> None:
    benchmark = loader_benchmark(tmp_path, native=64, image_size=(32, 32), images=2, source=source)
    assert list(benchmark.workloads) == [OURS, ORIGINAL]
    for spec in benchmark.workloads.values():
        works(spec)
    assert source in benchmark.title
    assert len(list((tmp_path / "rendered_64_2").glob("cache/*/cache.json"))) == (source == "cache")
    stamp = (tmp_path / "rendered_64_2" / "train.csv").stat().st_mtime_ns
    loader_benchmark(tmp_path, native=64, image_size=(32, 32), images=2)
    assert (tmp_path / "rendered_64_2" / "train.csv").stat().st_mtime_ns == stamp


@pytest.mark.sweep
def test_ranks_work_together(tmp_path: Path) -> None:
    settings = json.loads((PROJECT_ROOT / "ds_configs" / "zero1.json").read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 1000
    small = tmp_path / "small.json"
    small.write_text(json.dumps(settings))
    benchmark = zero_benchmark(TINY.model_copy(update={"ranks": 2}), files=[small])
    assert list(benchmark.workloads) == ["ZeRO stage 0", "ZeRO stage 1", "ZeRO stage 2", str(small)]
    stages = [spec.zero_stage for spec in benchmark.workloads.values() if isinstance(spec, ModelSpec)]
    assert stages == [0, 1, 2, 1]
    assert len({works(spec) for spec in benchmark.workloads.values()}) == 1
    assert benchmark.images == 2


@pytest.mark.sweep
def test_a_failure_of_one_rank_is_heard_while_the_other_waits_for_it() -> None:
    """Real worker processes, as `bench` starts them."""
    spec = TINY.model_copy(update={"ranks": 2})
    with ExitStack() as stack:
        team = [stack.enter_context(interleaved._worker("team")) for _ in range(2)]
        port = unused_port()
        team[0].tell(Assignment(spec=spec, rank=0, port=port).model_dump_json())
        broken = spec.model_copy(update={"variant": "b9"})
        team[1].tell(Assignment(spec=broken, rank=1, port=port).model_dump_json())
        with pytest.raises(UserError, match="b9"):
            interleaved._answers(team)


def test_an_implementation_that_cannot_run_says_why() -> None:
    nobody = loss_benchmark((32, 32), 1, 3).workloads[OURS].model_copy(update={"implementation": "nobody"})
    with pytest.raises(UserError, match="nobody: UserError: no workload loss of nobody"):
        compare(Benchmark("", {"nobody": nobody}, 1), 1)
    with pytest.raises(UserError, match="--exclude me: the implementations are"):
        list(run_benchmark(loss_benchmark((32, 32), 1, 3), 1, ["me"], None))


@pytest.mark.parametrize("rounds", ["--rounds", pytest.param("--pairs", marks=pytest.mark.sweep)])
def test_the_verb_prints_a_table_and_writes_everything(tmp_path: Path, rounds: str) -> None:
    output, small = tmp_path / "metric.json", ("--image-size", "32", "--batch", "1")
    without = () if rounds == "--rounds" else ("--without", "mean IoU in NumPy")
    done = run_verb("bench", "evaluate", *small, rounds, "2", *without, "--json", str(output))
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    rows = written["rows"]
    assert [row["name"] for row in rows] == [OURS, "mean IoU in NumPy"][: 1 if without else 2]
    assert OURS in done.stdout
    assert {"hardware", "software", "command"} <= written["record"].keys()
    for row in rows:
        assert len(row["seconds"]) == len(row["ratios"]) == 2
        first = rows[0]["seconds"]
        assert row["ratios"] == [own / base for own, base in zip(row["seconds"], first, strict=True)]
        assert row["ratio"] == statistics.median(row["ratios"])
        assert row["memory_mib"] is None or row["memory_mib"] > 0
    notice = "note: --pairs is now --rounds; --pairs is read until 0.3\n"
    assert (notice in done.stderr) == (rounds == "--pairs")


@pytest.mark.sweep
def test_a_worker_that_is_killed_is_an_error_for_the_user() -> None:
    spec = loss_benchmark((32, 32), 1, 3).workloads[OURS]
    with pytest.raises(UserError, match="ended with -9"), interleaved._team("ours", spec) as team:
        team[0]._process.kill()
        team[0]._process.wait()
        interleaved._ask(team, "run")
