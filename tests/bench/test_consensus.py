"""The measurement of what the ranks' consensus costs."""

from __future__ import annotations

import pytest

from segformer_spark.bench.consensus import ORDERS, ConsensusRow, StandIn, describe_consensus, measure_consensus
from segformer_spark.errors import UserError


def test_a_step_lasts_as_long_as_the_slower_of_host_and_device() -> None:
    stand_in = StandIn(launch=0.001, compute=0.02)
    (row,) = measure_consensus([2], stand_in, 5)
    assert row.num_ranks == 2
    assert set(row.ms) == set(ORDERS)
    assert min(row.ms.values()) > 10, "the device's 20 ms, from launch to launch"
    lines = list(describe_consensus(iter([row]), stand_in))
    assert lines[-1].split()[0] == "2"


def test_a_rank_that_fails_is_heard() -> None:
    with pytest.raises(UserError, match="bench consensus: rank [01]: sleep length must be non-negative"):
        list(measure_consensus([2], StandIn(-1.0, 0.001), 1))


def test_the_table() -> None:
    row = ConsensusRow(8, {"none": 16.0, "before": 20.25, "ahead": 16.5})
    *_, last = describe_consensus(iter([row]), StandIn(0.013, 0.016))
    assert last.split() == ["8", "16.00", "20.25", "16.50"]
