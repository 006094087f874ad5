from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segformer_spark.bench.scaling import ScalingRow, add_row, describe, measure_throughput, read_rows
from segformer_spark.config.load import load_config
from segformer_spark.errors import UserError
from tests.ranks import Group, run_on_ranks
from tests.tiny import TINY_PARAMETERS
from tests.training.short_run import SHORT


def measured(group: Group, root: str) -> ScalingRow:
    overrides = [*SHORT, f"data.root={root}", "training.batch_size=2", "training.global_batch_size=null"]
    return measure_throughput(load_config(overrides=overrides).config, group, num_steps=6)


def test_more_steps_than_an_epoch_has(spark_root: Path) -> None:
    first, second = run_on_ranks(2, measured, str(spark_root))
    assert first.model_copy(update={"measured": ""}) == second.model_copy(update={"measured": ""})
    assert (first.nodes, first.world_size, first.global_batch, first.steps) == (1, 2, 4, 6)
    assert first.step_ms_min <= first.step_ms <= first.step_ms_max
    assert first.images_per_s == pytest.approx(4000 / first.step_ms, rel=1e-3)
    assert 0 < first.compute_ms < 100 * first.step_ms
    assert first.trained_parameters == TINY_PARAMETERS + 3 * 9
    assert first.interconnect_gb_per_s > 0
    assert first.images_per_s_per_device == pytest.approx(first.images_per_s / 2, abs=1e-3)


def row(nodes: int, rate: float, **more: Any) -> ScalingRow:
    alike = {"device": "x", "variant": "b0", "image_size": 64, "precision": "fp32", "zero_stage": 1, "micro_batch": 2}
    times = {"step_ms": 1.0, "step_ms_min": 1.0, "step_ms_max": 2.0, "images_per_s": rate * nodes}
    counts = {"nodes": nodes, "world_size": nodes, "global_batch": 2 * nodes}
    return ScalingRow(**{**counts, **alike, **times, "images_per_s_per_device": rate, **more})


def test_efficiency_is_relative_to_the_first_row_of_the_same_training(tmp_path: Path) -> None:
    table = tmp_path / "scaling.csv"
    assert add_row(table, row(1, 50.0)).efficiency == 1
    assert add_row(table, row(2, 45.0)).efficiency == 0.9
    assert add_row(table, row(1, 10.0, variant="b5")).efficiency == 1
    last = add_row(table, row(4, 40.0))
    assert last.efficiency == 0.8
    assert "efficiency 80.0 %" in describe(last)
    assert len(table.read_text().splitlines()) == 5


def test_strong_rows_are_alike_by_their_global_batch(tmp_path: Path) -> None:
    table = tmp_path / "scaling.csv"
    assert add_row(table, row(1, 50.0, micro_batch=8, global_batch=8), strong=True).efficiency == 1
    assert add_row(table, row(2, 40.0, micro_batch=4, global_batch=8), strong=True).efficiency == 0.8


def test_a_table_of_the_version_before_is_read(tmp_path: Path) -> None:
    table = tmp_path / "scaling.csv"
    add_row(table, row(2, 50.0, interconnect_latency_us=12.5, interconnect_gb_per_s=1.25))
    text = table.read_text()
    table.write_text(text.replace("interconnect_", "link_"))
    assert "link_gb_per_s" in table.read_text()
    (old,) = read_rows(table)
    assert (old.interconnect_latency_us, old.interconnect_gb_per_s) == (12.5, 1.25)
    add_row(table, row(1, 45.0))
    assert table.read_text().startswith(text.splitlines()[0]), "written under today's names"


def test_a_table_of_something_else_is_named_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "scaling.csv"
    add_row(table, row(1, 50.0))
    table.write_text(table.read_text().replace(",b0,", ",b0,wide,", 1))
    with pytest.raises(UserError, match=r"scaling\.csv:2: .*no table of `bench scaling`"):
        read_rows(table)
