from __future__ import annotations

import os
import signal

import pytest

from segformer_spark.training import stop
from segformer_spark.training.best import BestTracker
from segformer_spark.training.stop import catch_signals


def test_patience_counts_validations_without_improvement() -> None:
    best = BestTracker(patience=2, min_delta=0.0)
    assert best.update(0.5, 1)
    assert not best.update(0.5, 2)
    assert not best.exhausted
    assert best.update(0.6, 3)
    assert (best.score, best.step, best.since_rise) == (0.6, 3, 0)
    assert not best.update(0.1, 4)
    assert not best.update(0.59, 5)
    assert best.exhausted


def test_any_rise_is_the_best_and_patience_waits_for_a_large_one() -> None:
    best = BestTracker(patience=2, min_delta=0.01)
    assert [best.update(score, step) for step, score in enumerate((0.50, 0.505, 0.509))] == [True, True, True]
    assert (best.score, best.step) == (0.509, 2)
    assert best.exhausted, "two validations without a rise of more than 0.01 over 0.50"
    assert best.update(0.511, 3)
    assert not best.exhausted
    other = BestTracker(patience=None, min_delta=0.1)
    assert [other.update(score, step) for step, score in enumerate((0.6663, 0.6758, 0.6749))] == [True, True, False]
    assert (other.score, other.step) == (0.6758, 1)


def test_an_undefined_score_chooses_nothing_and_costs_no_patience() -> None:
    best = BestTracker(patience=1, min_delta=0.0)
    assert not best.update(None, 1)
    assert (best.score, best.exhausted) == (None, False)
    assert best.update(0.0, 2)
    assert not best.update(None, 3)
    assert not best.exhausted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_become_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_signals() as request:
        assert request.reason is None
        os.kill(os.getpid(), number)
        assert request.reason == number.name
    assert signal.getsignal(number) is before


def test_the_third_interrupt_leaves_at_once() -> None:
    with catch_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_clock_asks_to_stop_before_the_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(stop.time, "time", lambda: now[0])
    with catch_signals(deadline=1100.0) as request:
        request.look_at_the_clock(reserve=60)
        assert request.reason is None
        now[0] = 1041.0
        request.look_at_the_clock(reserve=60)
        assert request.reason == "the job's time is over soon"
    with catch_signals() as request:
        request.look_at_the_clock(reserve=1e9)
        assert request.reason is None, "nobody said when"
