"""Benchmarks at a tiny size: they run, and ratios are what they are said to be. No time is asserted."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from pathlib import Path

import pytest
from segformer_spark.bench.contests import (
    PRODUCTS,
    ModelOptions,
    loader_contest,
    loss_contest,
    model_contest,
    zero_contest,
)
from segformer_spark.bench.pairs import Contest, Row, compare, table
from segformer_spark.bench.tasks import OURS

from segformer_spark.bench import pairs
from segformer_spark.bench.report import run_contest
from segformer_spark.cli import main
from segformer_spark.config.load import PROJECT_ROOT
from segformer_spark.errors import UserError

TINY = ModelOptions("b0", 64, 1, 3, "fp32", "cpu")


def test_ratios_are_pairwise_and_their_median_is_quoted() -> None:
    contest = Contest("title", {"a": {}, "b": {}}, 4)
    seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}
    rows = [
        Row(name, own, [t / r for t, r in zip(own, seconds["a"], strict=True)], 12.0, 8.0)
        for name, own in seconds.items()
    ]
    assert rows[1].ratio == 2.0
    first, second = table(contest, rows, peak_flops=8.0)[2:]
    assert first.split() == ["a", "2000.0", "2.00", "1.00", "1.00", "1.00", "12", "50", "%"]
    assert second.split() == ["b", "2000.0", "2.00", "2.00", "1.00", "3.00", "12", "50", "%"]


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_contestants_of_a_model_contest_run(kind: str) -> None:
    contest = model_contest(kind, TINY)
    wanted = {name: task for name, task in contest.tasks.items() if name not in ("smp", "transformers eager")}
    assert contest.tasks["transformers SDPA, memory kept"] == {
        **contest.tasks["transformers SDPA"],
        "keep_memory": True,
    }
    assert ("seed's way" in contest.tasks) == (kind == "train")
    rows = compare(Contest(contest.title, wanted, 1), 2)
    assert [row.name for row in rows] == list(wanted)
    for row in rows:
        assert len(row.seconds) == len(row.ratios) == 2
        assert row.ratios == [own / first for own, first in zip(row.seconds, rows[0].seconds, strict=True)]
        assert row.ratio == statistics.median(row.ratios)
        assert row.memory_mib is None or row.memory_mib > 0
    assert rows[0].flops is not None
    assert {row.name for row in rows if row.flops} == {OURS, PRODUCTS}


@pytest.mark.parametrize("source", ["files", "reduced", "cache"])
def test_the_loader_contest_renders_its_set_once(source: str, tmp_path: Path) -> None:
    contest = loader_contest(tmp_path, native=64, image_size=32, images=2, source=source)
    rows = compare(contest, 1)
    assert [row.name for row in rows] == [OURS, "seed's way"]
    assert source in contest.title
    assert len(list((tmp_path / "rendered_64_2").glob("cache/*/cache.json"))) == (source == "cache")
    stamp = (tmp_path / "rendered_64_2" / "train.csv").stat().st_mtime_ns
    loader_contest(tmp_path, native=64, image_size=32, images=2)
    assert (tmp_path / "rendered_64_2" / "train.csv").stat().st_mtime_ns == stamp


def test_ranks_work_together(tmp_path: Path) -> None:
    settings = json.loads((PROJECT_ROOT / "ds_configs" / "zero1.json").read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 1000
    (tmp_path / "small.json").write_text(json.dumps(settings))
    small = str(tmp_path / "small.json")
    contest = zero_contest(TINY, ranks=2, files=[Path(small)])
    assert contest.tasks[small]["zero_stage"] == 1
    rows = compare(contest, 1)
    assert [row.name for row in rows] == ["ZeRO stage 0", "ZeRO stage 1", "ZeRO stage 2", small]
    assert all(row.flops == rows[0].flops for row in rows)
    assert contest.images == 2


def test_a_rank_that_fails_is_heard_while_the_others_wait() -> None:
    task = zero_contest(TINY, ranks=2).tasks["ZeRO stage 0"]
    with ExitStack() as stack:
        team = [stack.enter_context(pairs._worker("team")) for _ in range(2)]
        port = pairs._free_port()
        team[0].tell(json.dumps({**task, "rank": 0, "port": port}))
        team[1].tell(json.dumps({**task, "rank": 1, "port": port, "variant": "b9"}))
        with pytest.raises(UserError, match="b9"):
            pairs._answers(team)


def test_a_contestant_that_cannot_work_says_why() -> None:
    contest = loss_contest(32, 1, 3)
    broken = {**contest.tasks, "nobody": {"kind": "loss", "who": "nobody"}}
    with pytest.raises(UserError, match="nobody: UserError: no task loss for nobody"):
        compare(Contest("", broken, 1), 1)
    with pytest.raises(UserError, match="the contestants are"):
        list(run_contest(contest, 1, ["me"], None))


def test_the_verb_prints_a_table_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "metric.json"
    arguments = ["bench", "evaluate", "--image-size", "32", "--batch", "1", "--pairs", "2", "--json", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())
    assert [row["name"] for row in written["rows"]] == [OURS, "mean IoU in NumPy"]
    assert all(row["name"] in printed for row in written["rows"])
    assert {"hardware", "software", "command"} <= written["record"].keys()
    assert written["rows"][1]["ratio"] == statistics.median(written["rows"][1]["ratios"])


def test_a_worker_that_is_killed_is_an_error_for_the_user() -> None:
    contest = loss_contest(32, 1, 3)
    with pytest.raises(UserError, match="ended with -9"), pairs._team("ours", contest.tasks[OURS]) as team:
        team[0]._process.kill()
        team[0]._process.wait()
        pairs._ask(team, "run")
