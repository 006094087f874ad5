from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, Entropy, MaxLogit, MaxSoftmax
from scipy import special, stats

from segformer_spark.anomaly.methods import FEATURES, FITTED, LOGIT_STATISTICS, METHODS, PLAIN
from segformer_spark.anomaly.scores import (
    ClassStatistics,
    StatisticsSums,
    build_score,
    read_statistics,
    write_statistics,
)
from segformer_spark.cli import build_parser
from segformer_spark.errors import UserError
from tests.ranks import Group, run_on_ranks

LOGITS = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
VALUES = LOGITS.numpy()
PROBABILITIES = special.softmax(VALUES, axis=0)
STATISTICS = ClassStatistics(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([1.0, 2, 1, 2, 4]), torch.ones(5))


def expected(method: str) -> np.ndarray:
    ordered = np.sort(PROBABILITIES, axis=0)
    winner = VALUES.argmax(0)
    mean, deviation = STATISTICS.mean.numpy(), STATISTICS.deviation.numpy()
    return {
        "msp": 1 - ordered[-1],
        "max_logit": -VALUES.max(0),
        "energy": -2.5 * special.logsumexp(VALUES / 2.5, axis=0),
        "entropy": stats.entropy(PROBABILITIES, axis=0),
        "margin": 1 - (ordered[-1] - ordered[-2]),
        "standardized_max_logit": -(VALUES.max(0) - mean[winner]) / deviation[winner],
    }[method]


@pytest.mark.parametrize("method", [*PLAIN, *LOGIT_STATISTICS])
def test_scores_are_their_formulas(method: str) -> None:
    score = build_score(method, temperature=2.5, statistics=STATISTICS)
    np.testing.assert_allclose(score(LOGITS).numpy(), expected(method), rtol=1e-12, atol=1e-12)


def test_the_command_line_offers_all(capsys: pytest.CaptureFixture[str]) -> None:
    for action, offered in (("fit", FITTED), ("eval", (*METHODS, "all"))):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["anomaly", action, "--help"])
        shown = capsys.readouterr().out
        assert f"{{{','.join(offered)}}}" in re.sub(r"\s", "", shown)
    assert (*PLAIN, *LOGIT_STATISTICS, *FEATURES) == METHODS


@pytest.mark.parametrize(
    ("method", "theirs", "shift"),
    [
        ("msp", lambda logits: MaxSoftmax.score(logits), 1.0),
        ("max_logit", lambda logits: MaxLogit.score(logits), 0.0),
        ("energy", lambda logits: EnergyBased.score(logits, 2.5), 0.0),
        ("entropy", lambda logits: Entropy.score(logits), 0.0),
    ],
)
def test_scores_are_pytorch_oods(method: str, theirs: Any, shift: float) -> None:
    own = build_score(method, temperature=2.5)(LOGITS)
    torch.testing.assert_close(own, theirs(LOGITS[None])[0] + shift, rtol=1e-6, atol=1e-6)


def test_one_class_has_no_margin() -> None:
    assert torch.equal(build_score("margin")(torch.randn(1, 2, 3)), torch.zeros(2, 3))


def fitted(group: Group) -> dict[str, list[float]]:
    sums = StatisticsSums(6, group.device)
    for index in range(group.rank, 4, group.world_size):
        sums.add(torch.cat([LOGITS.roll(index, 0) + index, torch.full((1, 6, 7), -99.0)]))
    found = sums.finish(group.sum)
    return {name: getattr(found, name).tolist() for name in ("mean", "deviation", "pixels")}


def test_statistics_are_of_the_winning_class_over_all_ranks() -> None:
    (alone,) = run_on_ranks(1, fitted)
    for one in run_on_ranks(2, fitted):
        for name, values in alone.items():
            assert one[name] == pytest.approx(values)
    highest = np.concatenate([(VALUES.max(0) + index).ravel() for index in range(4)])
    winners = np.concatenate([np.roll(VALUES, index, 0).argmax(0).ravel() for index in range(4)])
    for number in range(5):
        own = highest[winners == number]
        assert alone["pixels"][number] == len(own)
        assert alone["mean"][number] == pytest.approx(own.mean())
        assert alone["deviation"][number] == pytest.approx(own.std())
    assert (alone["mean"][5], alone["deviation"][5], alone["pixels"][5]) == (0, 1, 0)


def test_statistics_are_kept_with_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    with pytest.raises(UserError, match="run `segformer-spark anomaly fit` first"):
        read_statistics(path, list("abcde"), 70)
    write_statistics(path, STATISTICS, list("abcde"), 70)
    assert torch.equal(read_statistics(path, list("abcde"), 70).mean, STATISTICS.mean)
    with pytest.raises(UserError, match="statistics of a, b, c, d, e; fit again"):
        read_statistics(path, list("abcdx"), 70)
    path.write_text(json.dumps({"max_logit": [{"name": "a"}]}))
    with pytest.raises(UserError, match="no statistics can be read"):
        read_statistics(path, ["a"], 70)
    with pytest.raises(UserError, match="anomaly fit RUN"):
        build_score("standardized_max_logit")
