from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.class_weights import RULES, class_weights
from segformer_spark.errors import DataError

IMAGES = [[90, 10, 0], [50, 0, 50], [100, 0, 0]]


def scaled(weights: list[float]) -> list[float]:
    return list(np.array(weights) / np.mean(weights))


def test_inverse() -> None:
    assert class_weights("inverse", IMAGES) == pytest.approx(scaled([300 / 240, 300 / 10, 300 / 50]))


@pytest.mark.parametrize("rule", ["median_frequency", "auto"])
def test_median_frequency_counts_only_images_with_the_class(rule: str) -> None:
    frequencies = [240 / 300, 10 / 100, 50 / 100]
    assert class_weights(rule, IMAGES) == pytest.approx(scaled([0.5 / f for f in frequencies]))


def test_effective_number() -> None:
    beta = 2 / 3
    numbers = [240 / 100, 10 / 100, 50 / 100]
    assert class_weights("effective_number", IMAGES) == pytest.approx(
        scaled([(1 - beta) / (1 - beta**n) for n in numbers])
    )


@given(
    st.lists(st.lists(st.integers(0, 10**6), min_size=4, max_size=4), min_size=1, max_size=8), st.sampled_from(RULES)
)
def test_weights_are_positive_with_mean_one_and_rise_as_classes_get_rarer(images: list[list[int]], rule: str) -> None:
    totals = np.sum(images, 0)
    if not totals.any():
        with pytest.raises(DataError, match="no image has a labelled pixel"):
            class_weights(rule, images)
        return
    weights = np.array(class_weights(rule, images))
    present = totals > 0
    assert (weights > 0).all()
    assert weights[present].mean() == pytest.approx(1)
    assert (weights[~present] == 1).all()
    if rule != "median_frequency":
        order = np.argsort(totals[present])
        assert (np.diff(weights[present][order]) <= 1e-9).all()
