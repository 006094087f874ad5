"""Bootstrap and Holm: against scipy and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from segformer_spark.metrics.confusion import EvaluationCounts
from segformer_spark.metrics.headline import Headline
from segformer_spark.metrics.resampling import holm, holm_levels, image_weights, interval, p_value
from segformer_spark.metrics.scores import summarize
from segformer_spark.metrics.spark_score import spark_score

NAMES = ("background", "body", "panels")


def counts(number: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    joint = rng.integers(0, 50, (number, 3, 3)) + 60 * np.eye(3, dtype=np.int64)
    return np.stack([joint.sum(1), joint.sum(2), np.diagonal(joint, axis1=1, axis2=2)], -1)


def test_with_equal_weights_they_are_the_metrics() -> None:
    per_image = counts(40)
    found = Headline(per_image, NAMES)
    assert found.value("spark_score") == pytest.approx(spark_score(per_image[:, 1], per_image[:, 2]).score, abs=1e-12)
    total = per_image.sum(0)
    iou = total[:, 2] / (total[:, 0] + total[:, 1] - total[:, 2])
    assert found.value("miou") == pytest.approx(iou.mean(), abs=1e-12)
    assert Headline(per_image, ("a", "b", "c")).names == ("miou",)


def test_weights_repeat_images() -> None:
    per_image = counts(6)
    weights = np.array([[2.0, 0, 1, 0, 3, 0]])
    repeated = per_image[[0, 0, 2, 4, 4, 4]]
    for name, values in Headline(per_image, NAMES).values(weights).items():
        assert values[0] == pytest.approx(Headline(repeated, NAMES).value(name), abs=1e-12)


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.2, 80)
    ours = interval(image_weights(range(80), 4000) @ values / 80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_groups_are_drawn_whole() -> None:
    weights = image_weights(["a", "a", "b", "b", "b", "c"], 50)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 2], weights[:, 4])
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()
    one = image_weights(["a", "a"], 50)
    assert (one == 1).all(), "one group is all there is"


def test_p_values() -> None:
    rng = np.random.default_rng(0)
    assert p_value(rng.normal(1, 0.1, 999)) == pytest.approx(2 / 1000)
    assert p_value(rng.normal(0, 1, 999)) > 0.5
    assert p_value(np.full(10, np.nan)) is None
    assert interval(np.full(100, np.nan)).low is None


def test_holm_levels_go_with_the_adjusted_values() -> None:
    p = [0.01, 0.04, None, 0.03]
    assert holm(p) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm_levels(p) == pytest.approx([1 - 0.05 / 3, 0.95, 0.95, 1 - 0.05 / 2])


def test_an_undefined_metric_is_none() -> None:
    empty = np.zeros((3, 3, 3), np.int64)
    assert Headline(empty, ("a", "b", "c")).value("miou") is None
    assert summarize(np.zeros((3, 3), np.int64), ("a", "b", "c"), 0)["miou"] is None
    assert EvaluationCounts.zeros(3, 3, 1).per_image.shape == empty.shape
