"""Two evaluations compared, against scipy's permutation test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from segformer_spark.errors import UserError
from segformer_spark.evaluation.paired import compare_evaluations, paired_table, permutation_p
from segformer_spark.evaluation.result_folder import seal, write_results
from segformer_spark.metrics.detailed import Description
from segformer_spark.metrics.image_counts import count_image, join_counts
from tests.verbs import leave

NAMES = ("background", "body", "panels")


def written(folder: Path, errors: float, seed: int, number: int = 12, names: tuple[str, ...] = NAMES) -> Path:
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(seed)
    parts = []
    for index in range(number):
        truth = rng.integers(0, 3, (24, 30)).astype(np.uint8)
        wrong = noise.random(truth.shape) < errors
        ids = np.where(wrong, noise.integers(0, 3, truth.shape), truth).astype(np.uint8)
        parts.append(count_image(index, torch.from_numpy(ids), torch.from_numpy(truth), 3, 255))
    of = Description(
        *(names, 0, ((0, 0, 0), (255, 0, 0), (0, 0, 255)), ()),
        tuple(f"image_{i}" for i in range(number)),
        (0,) * number,
        tuple(f"image_{i}" for i in range(number)),
        "images",
    )
    write_results(folder, join_counts(parts), of, {})
    seal(folder)
    return folder


def test_the_better_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = written(tmp_path / "a", 0.3, 1), written(tmp_path / "b", 0.1, 2, 15)
    found = compare_evaluations(first, second)
    assert found.left_out == 3
    for one in found.metrics:
        assert one.difference is not None
        if one.name != "spark_score":
            assert one.bounds.low is not None
            assert 0 < one.bounds.low < one.difference
    assert found.p is not None
    assert found.p < 0.01
    assert leave("runs", "compare", str(first), str(second)) == 0
    said = capsys.readouterr().out
    assert "B is better on 12 images, worse on 0" in said
    assert "12 images in common, 3 left out" in said
    assert paired_table(compare_evaluations(first, first))[-1].count("->") == 1
    assert compare_evaluations(first, first).p is None


def test_p_is_scipys() -> None:
    difference = np.random.default_rng(5).normal(0.03, 0.1, 40)
    ours = permutation_p(difference, [str(i) for i in range(40)])
    theirs = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=10_000, rng=3
    ).pvalue
    assert ours == pytest.approx(float(theirs), abs=0.015)


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a", 0.3, 1)
    other = written(tmp_path / "b", 0.3, 1, names=("a", "b", "c"))
    with pytest.raises(UserError, match="they are not compared"):
        compare_evaluations(first, other)
    (first / "counts.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        compare_evaluations(first, first)
    assert leave("runs", "compare", str(first)) == 2
    assert "which two?" in capsys.readouterr().err
