from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from segformer_spark.metrics.ranking import Ranking, ScoreHistogram, rank
from tests.ranks import Group, run_on_ranks

CASES = st.lists(
    st.tuples(st.floats(-60000, 60000, width=16) | st.sampled_from([-1.0, -0.0, 0.0, 2.5]), st.booleans()), min_size=2
)


def compare(ranking: Ranking, scores: np.ndarray, truth: np.ndarray) -> None:
    assert ranking.auroc() == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert ranking.average_precision() == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert ranking.fpr_at(0.95) == pytest.approx(fpr[tpr >= 0.95].min())
    precision, recall, _ = precision_recall_curve(truth, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    assert ranking.f1.max() == pytest.approx(f1.max())


def histogram(scores: np.ndarray, truth: np.ndarray) -> Ranking:
    counts = ScoreHistogram.empty()
    counts.add(torch.from_numpy(scores), torch.from_numpy(truth))
    return counts.ranking()


@given(CASES)
def test_as_scikit_learn_defines_them(cases: list[tuple[float, bool]]) -> None:
    scores, truth = np.array([s for s, _ in cases], np.float32), np.array([t for _, t in cases])
    for ranking in (rank(scores, truth), histogram(scores, truth)):
        if truth.all() or not truth.any():
            assert ranking.auroc() is ranking.average_precision() is ranking.fpr_at(0.95) is None
        else:
            compare(ranking, scores, truth)


def test_half_precision_hardly_changes_the_figures() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300_000) < 0.01
    scores = (rng.normal(0, 3, truth.shape) + 4 * truth).astype(np.float32)
    ranking = histogram(scores.reshape(300, -1), truth.reshape(300, -1))
    assert ranking.auroc() == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert ranking.average_precision() == pytest.approx(average_precision_score(truth, scores), abs=1e-4)


def test_thresholds_are_the_scores() -> None:
    ranking = histogram(
        np.array([0.5, -2.0, np.inf, 0.5, -0.0], np.float32), np.array([True, False, True, False, False])
    )
    assert ranking.thresholds.tolist() == [np.inf, 0.5, 0.0, -2.0]
    assert ranking.true_positives.tolist() == [1, 2, 2, 2]
    assert ranking.false_positives.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="not a number"):
        histogram(np.array([np.nan], np.float32), np.array([True]))


def summed(group: Group) -> list[float | None]:
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(90, generator=generator), torch.rand(90, generator=generator) < 0.3
    counts = ScoreHistogram.empty()
    counts.add(scores[group.rank :: group.world_size], truth[group.rank :: group.world_size])
    ranking = counts.reduce(group.sum).ranking()
    return [ranking.auroc(), ranking.average_precision(), ranking.fpr_at(0.95)]


def test_ranks_add_up() -> None:
    (whole,) = run_on_ranks(1, summed)
    assert run_on_ranks(3, summed) == [whole] * 3


def test_scores_beyond_float16_tie_at_its_end() -> None:
    histogram = ScoreHistogram.empty()
    histogram.add(torch.tensor([1e6, 2e9, 1.0, -1e7]), torch.tensor([True, False, False, False]))
    ranking = histogram.ranking()
    assert ranking.thresholds.tolist() == [65504.0, 1.0, -65504.0]
    assert ranking.true_positives.tolist() == [1, 1, 1]
