from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from segformer_spark.agreement.correlation import KINDS, THRESHOLDS, correlate, decisions, exact_p, maximum
from segformer_spark.agreement.findings import against_size, describe_size

# Study A: parameters with 150 classes, and maxima as published, to three digits.
PARAMETERS = (3_752_694, 13_715_798, 27_461_974, 47_337_814, 64_108_374, 84_708_694)
MAXIMA = {"pearson": (0.178, 0.264, 0.341, 0.191, 0.427, 0.221), "spearman": (0.182, 0.281, 0.320, 0.154, 0.455, 0.189)}
PUBLISHED = {"pearson": (0.2399, 0.371, 0.47), "spearman": (0.1303, 0.200, 0.70)}

RNG = np.random.default_rng(0)
CHANGES = RNG.uniform(0, 1.2, 30)
ANSWERS = np.clip(0.6 * CHANGES + RNG.normal(0, 0.3, 30), 0, 1).round(1)


def test_thresholds_are_the_studys() -> None:
    assert (len(THRESHOLDS), THRESHOLDS[0], THRESHOLDS[-1]) == (49, 0.02, 0.98)
    assert decisions([0.02, 0.03, 2.0])[0].tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_size_against_agreement_is_as_study_a_found(kind: str) -> None:
    """r was computed before rounding: it must lie where the rounded maxima allow it; rho does not change."""
    r, rho, p = PUBLISHED[kind]
    found = against_size(PARAMETERS, MAXIMA)[f"max_{kind}"]
    near = [
        stats.pearsonr(PARAMETERS, np.add(MAXIMA[kind], np.multiply(signs, 0.0005)))[0]
        for signs in itertools.product((-1, 1), repeat=6)
    ]
    assert min(near) < r < max(near)
    assert found["r"] == pytest.approx(r, abs=0.002)
    assert found["rho"] == pytest.approx(rho, abs=0.0005)
    assert found["rho_p"] == pytest.approx(p, abs=0.005)
    assert found["n"] == 6
    assert f"rho {rho:.3f} (p {p:.2f}, exact {found['rho_exact_p']:.2f}), n 6" in describe_size(found)


def test_what_is_undefined_is_none() -> None:
    for one, other in (([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0] * 3), ([1.0, 2.0], [1.0, 2.0])):
        for kind in KINDS:
            assert correlate(kind, one, other).value is None
            assert correlate(kind, one, other).p is None
    for changes, answers in (
        ([0.5, 0.6], [0.0, 1.0]),
        ([2.0, 3.0, 4.0], [0.0, 0.5, 1.0]),
        ([0.1, 0.5, 0.9], [0.5] * 3),
    ):
        best = maximum("pearson", changes, answers, repeats=10)
        assert (best.value, best.threshold, best.p, best.low, best.high) == (None,) * 5
    assert against_size([1, 2], {"pearson": [0.1, 0.2]})["max_pearson"]["r"] is None
    assert against_size([1, 2, 3], {"pearson": [0.1, None, 0.2]})["max_pearson"]["n"] == 2
    assert describe_size(against_size([1, 2], {"pearson": [0.1, 0.2]})["max_pearson"]) == "undefined (n 2)"


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_the_maximum_is_over_all_thresholds(kind: str, oracle: object) -> None:
    values = {}
    for threshold in THRESHOLDS:
        decided = (threshold < CHANGES).astype(float)
        if np.ptp(decided):
            values[threshold] = oracle(decided, ANSWERS)[0]  # type: ignore[operator]
    best = maximum(kind, list(CHANGES), list(ANSWERS), repeats=200)
    assert best.value == pytest.approx(max(values.values()))
    assert values[best.threshold] == pytest.approx(best.value)
    assert best.low is not None
    assert best.high is not None
    assert best.low < best.value < best.high + 0.2


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_its_p_is_that_of_scipys_permutations(kind: str, oracle: object) -> None:
    """Six items have 720 orders: scipy tries all, we draw."""
    changes, answers = [0.05, 0.1, 0.3, 0.33, 0.5, 0.9], np.array([0.1, 0.3, 0.2, 0.3, 0.9, 0.7])
    decided = [row for row in np.unique(decisions(changes).astype(float), axis=0) if np.ptp(row)]

    def highest(human: np.ndarray) -> float:
        return max(oracle(row, human)[0] for row in decided)  # type: ignore[operator]

    exact = stats.permutation_test((answers,), highest, permutation_type="pairings", alternative="greater")
    assert maximum(kind, changes, list(answers), repeats=20_000).p == pytest.approx(exact.pvalue, abs=0.01)


def test_chance_alone_is_rarely_significant() -> None:
    """One test would call a maximum over 49 thresholds significant far more often than in 5 of 100 cases."""
    rng = np.random.default_rng(1)
    p = [maximum("pearson", list(rng.random(20)), list(rng.random(20)), repeats=199, seed=n).p or 1 for n in range(60)]
    assert sum(one <= 0.05 for one in p) <= 8


def test_the_seed_decides() -> None:
    same = [maximum("spearman", list(CHANGES), list(ANSWERS), repeats=100, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert maximum("spearman", list(CHANGES), list(ANSWERS), repeats=100, seed=4) != same[0]


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_the_exact_p_is_that_of_all_orders(kind: str, oracle: object) -> None:
    """Of three models in order the t distribution says 0.00, of six orders two are as far from 0."""
    assert exact_p(kind, [1, 2, 3], [0.1, 0.2, 0.3]) == pytest.approx(1 / 3)
    one, other = list(CHANGES[:6]), list(ANSWERS[:6])

    def statistic(values: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(oracle(values, other)[0])  # type: ignore[operator]

    found = stats.permutation_test((one,), statistic, permutation_type="pairings", n_resamples=np.inf)
    assert exact_p(kind, one, other) == pytest.approx(found.pvalue, abs=2e-3)
    assert exact_p(kind, list(range(9)), list(range(9))) is None
    assert exact_p(kind, [1, 1, 1], [1, 2, 3]) is None
