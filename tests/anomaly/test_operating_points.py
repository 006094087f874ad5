from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from segformer_spark.anomaly.operating_points import (
    OperatingPoints,
    judged_at,
    operating_point_rows,
    split_in_halves,
    threshold_for_fpr,
    threshold_for_recall,
)
from segformer_spark.metrics.ranking import rank

scores_and_truths = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({truth for _, truth in rows}) == 2
)


def towns(sizes: dict[str, int]) -> Any:
    """A data set of towns."""
    groups = [index for index, size in enumerate(sizes.values()) for _ in range(size)]

    class DataSet(SimpleNamespace):
        def __len__(self) -> int:
            return len(groups)

    return DataSet(category=lambda index: groups[index], categories=tuple(sizes))


@given(scores_and_truths, st.floats(0.01, 1.0))
def test_thresholds_reach_their_targets_and_no_other_is_better(rows: list[tuple[int, bool]], target: float) -> None:
    scores, truth = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    ranking = rank(scores, truth)
    candidates = sorted({*scores, np.inf})
    recalls = {t: (scores[truth] >= t).mean() for t in candidates}
    assert threshold_for_recall(ranking, target) == max(t for t in candidates if recalls[t] >= target)
    rates = {t: (scores[~truth] >= t).mean() for t in candidates}
    assert threshold_for_fpr(ranking, target) == min(t for t in candidates if rates[t] <= target)


@given(scores_and_truths, st.floats(-1, 7))
def test_what_is_judged_is_scikit_learns(rows: list[tuple[int, bool]], threshold: float) -> None:
    scores, truth = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    called = scores >= threshold
    found = judged_at(rank(scores, truth), threshold)
    assert found["recall"] == pytest.approx(recall_score(truth, called))
    assert found["f1"] == pytest.approx(f1_score(truth, called))
    assert found["fpr"] == pytest.approx(called[~truth].mean())
    if called.any():
        assert found["precision"] == pytest.approx(precision_score(truth, called))
    else:
        assert found["precision"] is None


def test_towns_are_never_in_both_halves() -> None:
    data = towns({"a": 5, "b": 3, "c": 4, "d": 1})
    seen = set()
    for seed in range(8):
        halves = split_in_halves(data, seed)
        assert halves is not None
        assert halves == split_in_halves(data, seed)
        assert set(halves.fitted).isdisjoint(halves.judged)
        assert {*halves.fitted, *halves.judged} == set("abcd")
        for index in range(len(data)):
            town = data.categories[data.category(index)]
            assert halves.is_judged[index] == (town in halves.judged)
        assert 3 <= sum(halves.is_judged) <= 10
        seen.add(halves.fitted)
    assert len(seen) > 1, "the seed decides"
    assert split_in_halves(towns({"only": 7}), 0) is None


def test_rows_say_where_a_threshold_comes_from_and_where_it_is_judged() -> None:
    halves = split_in_halves(towns({"t5": 2, "t6": 2}), 0)
    assert halves is not None
    rng = np.random.default_rng(0)
    fitted, judged, normal = (
        {"msp": rank(rng.normal(size=400) + shift * truth, truth)}
        for truth, shift in ((rng.random(400) < 0.2, 1), (rng.random(400) < 0.2, 1), (np.zeros(400, bool), 0))
    )
    points = OperatingPoints(halves, recall=0.9, fpr=0.1)
    rows = {row["target"]: row for row in operating_point_rows(fitted, judged, points)}
    assert list(rows) == ["recall >= 0.9", "false-positive rate <= 0.1", "best F1"]
    assert all(row["fitted_on"] in ("t5", "t6") and row["judged_on"] != row["fitted_on"] for row in rows.values())
    assert rows["recall >= 0.9"]["recall"] == pytest.approx(0.9, abs=0.06), "on the other half, to its noise"
    assert rows["recall >= 0.9"]["threshold"] == threshold_for_recall(fitted["msp"], 0.9)
    elsewhere = OperatingPoints(halves, fpr=0.1, elsewhere=("val", normal))
    own = {row["target"]: row for row in operating_point_rows(fitted, judged, elsewhere)}
    assert own["false-positive rate <= 0.1"]["fitted_on"] == "val"
    assert own["false-positive rate <= 0.1"]["threshold"] == threshold_for_fpr(normal["msp"], 0.1)
    assert own["best F1"] == rows["best F1"]
