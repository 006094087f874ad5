from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segformer_spark.metrics.resampling import holm
from segformer_spark.study.statistics import over_seeds, paired_differences, pareto_front


def test_interval_is_students() -> None:
    values = [0.4, 0.5, 0.45, 0.55]
    interval = over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.475, low, high))
    single = over_seeds([0.3])
    assert (single.mean, single.low, single.high, single.count) == (0.3, None, None, 1)


def images(values: list[float]) -> dict[str, float]:
    return {f"image {index}": value for index, value in enumerate(values)}


def test_pairs_are_tested_image_by_image() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.9, 40)
    better = base + rng.normal(0.05, 0.03, 40)
    pairs = paired_differences({"a": images(better.tolist()), "b": images(base.tolist()), "c": images(base.tolist())})
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    first = pairs[0]
    assert first.difference == pytest.approx((better - base).mean())
    assert first.p == pytest.approx(stats.wilcoxon(better - base).pvalue)
    assert first.better == pytest.approx((better > base).mean())
    theirs = stats.bootstrap(
        (better - base,), np.mean, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    assert first.low == pytest.approx(theirs.low, abs=2e-3)
    assert first.high == pytest.approx(theirs.high, abs=2e-3)
    assert first.p_adjusted == pytest.approx(2 * first.p), "two defined p values"
    assert pairs[2].p is pairs[2].p_adjusted is None, "no difference at all"
    assert pairs == paired_differences(
        {"a": images(better.tolist()), "b": images(base.tolist()), "c": images(base.tolist())}
    )


def test_only_shared_images_count_and_few_have_no_p() -> None:
    pairs = paired_differences({"a": images([0.5, 0.6, 0.7]), "b": {"image 0": 0.4, "image 2": 0.9, "other": 0.1}})
    assert pairs[0].num_images == 2
    assert pairs[0].difference == pytest.approx((0.1 - 0.2) / 2)
    assert pairs[0].p is pairs[0].low is None


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_helps(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(p <= a <= 1 for p, a in zip(values, adjusted, strict=True) if a is not None)
    order = sorted(range(len(values)), key=lambda place: values[place])
    ranked = [adjusted[place] for place in order]
    assert all(one <= other for one, other in zip(ranked, ranked[1:], strict=False) if one and other)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], higher: bool) -> None:
    front = pareto_front(points, higher_cost_is_better=higher)
    sign = -1 if higher else 1

    def beaten(one: tuple[int, int]) -> bool:
        return any((sign * other[0] <= sign * one[0] and other[1] >= one[1]) and other != one for other in points)

    assert {points[place] for place in front} == {point for point in points if not beaten(point)}
    assert [points[place][0] for place in front] == sorted(points[place][0] for place in front)
