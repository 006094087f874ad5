"""The measurement of what ranks' agreement costs."""

from __future__ import annotations

import pytest

from segformer_spark.bench.agreement import ORDERS, AgreementRow, StandIn, describe_agreement, measure_agreement
from segformer_spark.errors import UserError


def test_a_step_lasts_as_long_as_the_slower_of_host_and_device() -> None:
    stand_in = StandIn(launch=0.001, compute=0.02)
    (row,) = measure_agreement([2], stand_in, 5)
    assert row.num_ranks == 2
    assert set(row.ms) == set(ORDERS)
    assert min(row.ms.values()) > 10, "the device's 20 ms, from launch to launch"
    lines = list(describe_agreement(iter([row]), stand_in))
    assert lines[-1].split()[0] == "2"


def test_a_rank_that_fails_is_heard() -> None:
    with pytest.raises(UserError, match="bench agreement: rank [01]: sleep length must be non-negative"):
        list(measure_agreement([2], StandIn(-1.0, 0.001), 1))


def test_the_table() -> None:
    row = AgreementRow(8, {"none": 16.0, "before": 20.25, "ahead": 16.5})
    *_, last = describe_agreement(iter([row]), StandIn(0.013, 0.016))
    assert last.split() == ["8", "16.00", "20.25", "16.50"]
