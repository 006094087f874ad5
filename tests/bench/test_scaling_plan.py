from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from segformer_spark.bench.interconnect import Interconnect, measure_interconnect
from segformer_spark.bench.scaling import ScalingRow, add_row
from segformer_spark.bench.scaling_plan import StepModel, describe_plan, make_plan
from segformer_spark.cli import main
from segformer_spark.config.load import load_config
from segformer_spark.errors import UserError
from tests.ranks import Group, run_on_ranks

INTERCONNECT = Interconnect(latency=1e-5, bandwidth=1e9)
CONFIG = load_config(overrides=["model.variant=b0", "data.image_size=64"]).config


def row(nodes: int, ranks: int, step_ms: float, **more: Any) -> ScalingRow:
    return ScalingRow(
        **{
            "measured": "now",
            "nodes": nodes,
            "world_size": ranks,
            "device": "x",
            "variant": "b0",
            "image_size": 64,
            "precision": "fp32",
            "zero_stage": 1,
            "micro_batch": 2,
            "global_batch": 2 * ranks,
            "step_ms": step_ms,
            "images_per_s": 2000 * ranks / step_ms,
            "images_per_s_per_device": 2000 / step_ms,
            "trained_parameters": 25_000_000,
            "compute_ms": 0.8 * step_ms,
            "interconnect_latency_us": None if ranks == 1 else 10.0,
            "interconnect_gb_per_s": None if ranks == 1 else 1.0,
            **more,
        }
    )


def table(path: Path, *rows: ScalingRow) -> Path:
    for one in rows:
        add_row(path, one)
    return path


def test_collectives_take_what_the_paper_says() -> None:
    assert INTERCONNECT.all_reduce(8, 1e9) == pytest.approx(2 * 3 * 1e-5 + 2 * 7 / 8)
    assert INTERCONNECT.all_gather(8, 1e9) == pytest.approx(3 * 1e-5 + 7 / 8)
    assert INTERCONNECT.all_reduce(5, 0) == pytest.approx(2 * 3 * 1e-5), "rounds are whole"


def test_zero_sends_half_as_much_again() -> None:
    plain, sharded = (StepModel(0.1, 10**8, stage) for stage in (0, 1))
    assert plain.communication(1, None) == 0
    assert plain.communication(4, INTERCONNECT) == pytest.approx(2 * 3 / 4 * 0.1 + (1 + 5) * 4e-5)
    assert sharded.communication(4, INTERCONNECT) == pytest.approx(3 * 3 / 4 * 0.1 + 6e-5 + 12 * 4e-5)
    assert plain.compute(0.5) == pytest.approx(0.55)


def test_a_step_is_passes_with_their_overhead_and_communication(tmp_path: Path) -> None:
    """One rank: steps of 100 and 130 ms, 80 of them passes. Two ranks send 100 MB all round and gather it: 0.15 s."""
    rows = (row(1, 1, 100.0, compute_ms=80.0), row(1, 1, 130.0, compute_ms=80.0), row(2, 2, 300.0, compute_ms=120.0))
    plan = make_plan(table(tmp_path / "s.csv", *rows), CONFIG, nodes=6, interconnect=None, strong=False)
    assert plan.model.overhead == pytest.approx((1.25 + 1.625) / 2 - 1)
    small = 12 * 2 * 1e-5 + 3e-5
    assert plan.model.communication(2, INTERCONNECT) == pytest.approx(0.15 + small)
    assert plan.checked[2][1] == pytest.approx(0.12 * 1.4375 + 0.15 + small)
    lines = list(describe_plan(plan))
    assert lines[7].split() == ["2", "2", "4", "300.0", "322.8", "+8", "%"]
    assert [one.nodes for one in plan.forecasts] == [one.ranks for one in plan.forecasts] == [1, 2, 4, 6]
    passes = 0.04  # per image: the median over the three rows, which all have one rank per node
    assert plan.forecasts[2].compute == pytest.approx(2 * passes * 1.4375)
    assert plan.forecasts[2].images_per_s == pytest.approx(8 / (0.115 + plan.model.communication(4, INTERCONNECT)))


def test_one_measured_size_is_enough(tmp_path: Path) -> None:
    """Two ranks: their communication is taken off before the overhead is known."""
    path = table(tmp_path / "s.csv", row(2, 2, 300.0))
    model = make_plan(path, CONFIG, nodes=2, interconnect=None, strong=False).model
    assert model.overhead == pytest.approx((0.3 - model.communication(2, INTERCONNECT)) / 0.24 - 1)
    alone = table(tmp_path / "t.csv", row(1, 1, 100.0))
    with pytest.raises(UserError, match="no interconnect was measured.*--bandwidth"):
        make_plan(alone, CONFIG, nodes=2, interconnect=None, strong=False)
    assert make_plan(alone, CONFIG, nodes=2, interconnect=INTERCONNECT, strong=False).forecasts[1].communication > 0.15


def test_rows_are_read_with_their_own_network_and_nodes_planned_with_theirs(tmp_path: Path) -> None:
    """Four ranks on one node with a network a hundred times faster than that between nodes."""
    inside = row(1, 4, 200.0, compute_ms=180.0, interconnect_gb_per_s=100.0)
    path = table(tmp_path / "s.csv", inside, row(2, 8, 500.0, compute_ms=180.0))
    plan = make_plan(path, CONFIG, nodes=2, interconnect=None, strong=False)
    fast = Interconnect(1e-5, 1e11)
    assert plan.model.overhead == pytest.approx((0.2 - plan.model.communication(4, fast)) / 0.18 - 1)
    assert plan.checked[0][1] == pytest.approx(0.2)
    assert plan.forecasts[0].communication == plan.model.communication(4, fast)
    assert plan.forecasts[1].communication == plan.model.communication(8, INTERCONNECT)
    other = make_plan(path, CONFIG, nodes=2, interconnect=Interconnect(1e-5, 2e9), strong=False)
    assert other.checked == plan.checked
    assert other.forecasts[1].communication < plan.forecasts[1].communication


def test_rows_that_make_no_sense(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", row(2, 2, 100.0))
    with pytest.raises(UserError, match="shorter than their communication"):
        make_plan(path, CONFIG, nodes=2, interconnect=None, strong=False)
    uneven = table(tmp_path / "t.csv", row(2, 3, 900.0))
    with pytest.raises(UserError, match="unequal numbers of ranks"):
        make_plan(uneven, CONFIG, nodes=2, interconnect=None, strong=False)


def test_strong_scaling_divides_the_batch_until_there_is_none(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", row(1, 2, 300.0))
    plan = make_plan(path, CONFIG, nodes=64, interconnect=INTERCONNECT, strong=True)
    assert [(one.nodes, one.ranks, one.global_batch) for one in plan.forecasts] == [(1, 2, 4), (2, 4, 4)]
    assert plan.forecasts[1].compute == pytest.approx(plan.forecasts[0].compute / 2)


def test_nodes_are_as_full_as_the_fullest_that_was_measured(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", row(1, 1, 100.0), row(1, 4, 400.0, compute_ms=200.0))
    plan = make_plan(path, CONFIG, nodes=2, interconnect=None, strong=False)
    assert [(one.nodes, one.ranks, one.global_batch) for one in plan.forecasts] == [(1, 4, 8), (2, 8, 16)]
    assert plan.forecasts[0].compute == pytest.approx(0.2 * (1 + plan.model.overhead))


def test_rows_of_another_training_do_not_count(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", row(1, 1, 100.0, variant="b5"))
    with pytest.raises(UserError, match="there is no row of b0, 64 px, fp32, ZeRO stage 1"):
        make_plan(path, CONFIG, nodes=2, interconnect=INTERCONNECT, strong=False)
    old = row(1, 1, 100.0, compute_ms=None, trained_parameters=None)
    with pytest.raises(UserError, match="there is no row"):
        make_plan(table(tmp_path / "old.csv", old), CONFIG, nodes=2, interconnect=INTERCONNECT, strong=False)
    with pytest.raises(UserError, match="there is no row"):
        make_plan(tmp_path / "nothing.csv", CONFIG, nodes=2, interconnect=INTERCONNECT, strong=False)


def test_the_verb_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "s.csv", row(1, 1, 100.0), row(2, 2, 300.0))
    settings = ["--set", "model.variant=b0", "--set", "data.image_size=64"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "scaling", "--plan", "--nodes", "4", "--csv", str(path), "--bandwidth", "2", *settings])
    assert ended.value.code == 0
    assert "2.00 GB/s" in capsys.readouterr().out
    written = list(csv.DictReader((tmp_path / "s.plan.csv").open()))
    assert [int(one["nodes"]) for one in written] == [1, 2, 4]
    assert (tmp_path / "s.plan.png").stat().st_size > 5000


def interconnect_of(group: Group) -> Interconnect | None:
    return measure_interconnect(group)


def test_the_network_between_ranks_is_measured() -> None:
    assert run_on_ranks(1, interconnect_of) == [None]
    first, second = run_on_ranks(2, interconnect_of)
    assert first == second
    assert 0 < first.latency < 0.1
    assert 1e6 < first.bandwidth < 1e12
    assert math.isfinite(first.all_reduce(64, 1e9))
