from __future__ import annotations

import time

import pytest

from segformer_spark.distributed import hang_watch
from segformer_spark.distributed.activity import Activity
from segformer_spark.distributed.hang_watch import HangWatch
from tests.waiting import wait_for


def watch(activity: Activity, said: list[str], *, steps: int = 12, least: float = 0.2) -> HangWatch:
    """One that has measured steps of a millisecond."""
    made = HangWatch(activity, 3, least, said.append)
    for _ in range(steps):
        made.measured(0.001)
    made.start()
    return made


def test_a_step_far_longer_than_those_before_is_a_hang() -> None:
    activity, said = Activity(), []
    running = watch(activity, said)
    assert running.limit == 0.2
    activity.begin("loading the images of step 13", is_limited=True)
    wait_for(lambda: said, "the watch")
    assert "[rank 3 on " in said[0]
    assert "loading the images of step 13 for 0 s, and the limit is 0 s" in said[0]


def test_who_waits_for_others_gives_them_time_to_speak_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_watch, "_MORE_FOR_WAITING", 0.2)
    activity, said = Activity(), []
    began = time.monotonic()
    watch(activity, said)
    activity.begin("waiting for the other ranks before step 13", is_limited=True, waits=True)
    wait_for(lambda: said, "the watch")
    assert time.monotonic() - began > 0.75


@pytest.mark.parametrize("what", ["before any step is measured", "what no step is", "steps that come in time"])
def test_nothing_else_is_a_hang(what: str) -> None:
    activity, said = Activity(), []
    running = watch(activity, said, steps=9 if "measured" in what else 12)
    for step in range(8):
        activity.begin(f"step {step}", is_limited="no step" not in what)
        time.sleep(0.05 if "in time" in what else 0.1)
        if "in time" not in what:
            activity.since -= 10
    time.sleep(0.1)
    running.stop()
    assert said == []


def test_the_limit_is_learned_from_the_longest_step_but_the_first() -> None:
    made = HangWatch(Activity(), 0, 1.0)
    made.measured(500.0)
    for seconds in (0.1, 0.3, *[0.1] * 6):
        made.measured(seconds)
        assert made.limit is None
    made.measured(0.1)
    assert made.limit == pytest.approx(6.0)
    made.measured(1.0)
    assert made.limit == pytest.approx(20.0)
