from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.metrics.spark_score import (
    THRESHOLDS,
    counts_for_panels,
    image_iou,
    share_above_thresholds,
    spark_score,
)

count = st.integers(0, 200)
image = st.tuples(count, count, st.floats(0, 1)).map(lambda t: (t[0], t[1], int(min(t[0], t[1]) * t[2])))


def counts(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, np.int64)


def literal(body: list[tuple[int, int, int]], panels: list[tuple[int, int, int]]) -> float:
    """The challenge's words, one image and one threshold at a time."""
    scores = []
    for which in ("body", "panels"):
        shares = []
        for tenth in range(10):
            threshold = (50 + 5 * tenth) / 100
            hits = total = 0
            for b, p in zip(body, panels, strict=True):
                if which == "panels" and p[1] < 0.05 * b[1] - 1e-9:
                    continue
                predicted, truth, overlap = b if which == "body" else p
                union = predicted + truth - overlap
                total += 1
                hits += (overlap / union if union else 1.0) > threshold
            if total:
                shares.append(hits / total)
        if shares:
            scores.append(sum(shares) / 10)
    return sum(scores) / len(scores)


@given(st.lists(st.tuples(image, image), min_size=1, max_size=8))
def test_score_is_what_the_challenge_says(images: list[tuple[tuple[int, int, int], tuple[int, int, int]]]) -> None:
    body, panels = [b for b, _ in images], [p for _, p in images]
    assert spark_score(counts(*body), counts(*panels)).score == pytest.approx(literal(body, panels))


def test_thresholds() -> None:
    assert THRESHOLDS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


@pytest.mark.parametrize("tenths", range(10))
def test_above_is_strict(tenths: int) -> None:
    iou = np.array([THRESHOLDS[tenths]])
    assert share_above_thresholds(iou) == pytest.approx(tenths / 10)
    assert share_above_thresholds(np.nextafter(iou, 1)) == pytest.approx((tenths + 1) / 10)


def test_an_iou_of_exactly_one_half_from_counts_does_not_count() -> None:
    assert share_above_thresholds(image_iou(counts((100, 50, 50)))) == 0


def test_empty_truth_and_prediction_is_perfect_and_invention_is_zero() -> None:
    np.testing.assert_array_equal(image_iou(counts((0, 0, 0), (5, 0, 0), (0, 5, 0))), [1, 0, 0])


def test_panels_count_from_five_percent_of_the_body_on() -> None:
    body = counts((0, 100, 0), (0, 100, 0), (0, 100, 0), (0, 0, 0))
    panels = counts((0, 4, 0), (0, 5, 0), (0, 6, 0), (0, 0, 0))
    assert counts_for_panels(body, panels).tolist() == [False, True, True, True]
    score = spark_score(body, panels)
    assert (score.num_images, score.num_panel_images) == (4, 3)


def test_no_image_for_panels() -> None:
    score = spark_score(counts((100, 100, 100)), counts((0, 1, 0)))
    assert score.panels is None
    assert score.score == 1.0
    assert score.body == 1.0
