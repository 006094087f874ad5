from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, Mahalanobis
from scipy import stats
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from segformer_spark.anomaly.features import (
    FeatureStatistics,
    GaussianSums,
    PartSums,
    build_map_score,
    distances,
    labelled_pixels,
    parts_of,
    read_features,
    write_features,
)
from segformer_spark.anomaly.methods import FEATURES
from segformer_spark.errors import UserError

CLASSES, WIDTH = 3, 5


def same(value: Tensor) -> Tensor:
    return value


def clouds(number: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number)
    mixing = rng.normal(size=(WIDTH, WIDTH))
    points = rng.normal(size=(number, WIDTH)) @ mixing + 3 * labels[:, None]
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def fitted(points: Tensor, labels: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    sums = GaussianSums(CLASSES, WIDTH, torch.device("cpu"))
    for some in torch.arange(len(points)).chunk(parts):
        sums.add(points[some], labels[some])
    return sums.finish(same)


def test_means_and_precision_are_those_of_all_points() -> None:
    points, labels = clouds()
    means, precision, priors = fitted(points, labels)
    wide = points.double().numpy()
    expected = np.stack([wide[labels.numpy() == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(means.numpy(), expected, rtol=1e-6)
    within = EmpiricalCovariance(assume_centered=True).fit(wide - expected[labels.numpy()])
    np.testing.assert_allclose(precision.numpy(), np.linalg.inv(within.covariance_), rtol=1e-3)
    np.testing.assert_allclose(priors.exp().numpy(), np.bincount(labels.numpy()) / len(labels), rtol=1e-6)


def test_the_order_and_the_batches_do_not_matter() -> None:
    points, labels = clouds()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
    for one, other in zip(fitted(points, labels), fitted(points[order], labels[order], parts=7), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_classes_that_were_never_seen_are_left_out() -> None:
    points, labels = clouds()
    means, _, priors = fitted(points[labels != 1], labels[labels != 1])
    assert len(means) == len(priors) == CLASSES - 1
    with pytest.raises(UserError, match="no labelled pixel"):
        GaussianSums(CLASSES, WIDTH, torch.device("cpu")).finish(same)


def test_mahalanobis_is_pytorch_oods() -> None:
    """Theirs leaves the covariance undivided by the number of points, so distances differ by that factor."""
    points, labels = clouds()
    theirs = Mahalanobis(None).fit_features(points, labels)
    means, precision, _ = fitted(points, labels)
    probes = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(2)) * 4
    expected = theirs.predict_features(probes[:, :, None])
    own = distances(probes.T[:, None], means, precision).amin(0)[0]
    torch.testing.assert_close(own, expected.double() * 2 * len(points), rtol=1e-2, atol=1e-2)


def statistics(centers: list[float] | None = None) -> FeatureStatistics:
    points, labels = clouds()
    return FeatureStatistics(*fitted(points, labels), torch.tensor(centers or [0.0] * 4), torch.ones(4))


def image(seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLASSES, 6, 8, generator=generator), torch.randn(WIDTH, 6, 8, generator=generator) * 3


def test_parts_by_plain_formulas() -> None:
    logits, features = image()
    fit = statistics()
    energy, mahalanobis, mixture, divergence = parts_of(logits, features, (fit.means, fit.precision, fit.log_priors))
    torch.testing.assert_close(energy, EnergyBased.score(logits[None].double())[0])
    row, column = 2, 5
    point = features[:, row, column].double().numpy()
    covariance = np.linalg.inv(fit.precision.numpy())
    logs = [stats.multivariate_normal(mean, covariance).logpdf(point) for mean in fit.means.numpy()]
    constant = -0.5 * (WIDTH * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
    assert float(mahalanobis[row, column]) == pytest.approx(min(-2 * (log - constant) for log in logs), rel=1e-6)
    density = np.log(
        sum(np.exp(prior + log - constant) for prior, log in zip(fit.log_priors.tolist(), logs, strict=True))
    )
    assert float(mixture[row, column]) == pytest.approx(-density, rel=1e-6)
    p = torch.softmax(logits.double(), 0).numpy()
    for row, column in ((2, 5), (0, 0), (5, 7)):
        near = p[:, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].mean((1, 2))
        assert float(divergence[row, column]) == pytest.approx(stats.entropy(p[:, row, column], near), rel=1e-6)


def test_scores_are_made_of_z_scored_parts() -> None:
    logits, features = image()
    fit = FeatureStatistics(*fitted(*clouds()), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 5.0, 8.0]))
    parts = parts_of(logits, features, (fit.means, fit.precision, fit.log_priors))
    z = (parts - fit.centers[:, None, None]) / fit.scales[:, None, None]
    torch.testing.assert_close(build_map_score("mahalanobis", fit)(logits, features), parts[1].sqrt().float())
    torch.testing.assert_close(build_map_score("heat", fit)(logits, features), (z[0] + z[2]).float())
    weights = np.exp(z[[0, 1, 3]].numpy())
    expected = (weights / weights.sum(0) * z[[0, 1, 3]].numpy()).sum(0)
    np.testing.assert_allclose(build_map_score("heat_hybrid", fit)(logits, features).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("method", FEATURES)
def test_what_lies_far_from_training_data_is_stranger(method: str) -> None:
    score = build_map_score(method, statistics())
    near = statistics().means[1].float()[:, None, None].expand(-1, 4, 4)
    logits = torch.tensor([0.0, 9.0, 0.0])[:, None, None].expand(-1, 4, 4)
    assert float(score(logits, near + 40).mean()) > float(score(logits, near).mean())


def test_scales_are_mean_and_deviation_over_all_pixels() -> None:
    sums, seen = PartSums(torch.device("cpu")), []
    for seed in range(3):
        parts = torch.randn(4, 5, 6 + seed, generator=torch.Generator().manual_seed(seed)).double() * 3 + 1
        sums.add(parts)
        seen.append(parts.flatten(1))
    mean, deviation = sums.finish(same)
    whole = torch.cat(seen, 1)
    torch.testing.assert_close(mean, whole.mean(1))
    torch.testing.assert_close(deviation, whole.std(1, correction=0))


def test_pixels_are_chosen_by_the_image_alone() -> None:
    truth = np.full((40, 60), 255, np.uint8)
    truth[:20], truth[20:, :30] = 1, 2
    features = torch.arange(2 * 10 * 15).view(2, 10, 15).float()
    everything, labels = labelled_pixels(features, truth, 5, 1000)
    assert len(labels) == 5 * 15 + 5 * 7
    rows, columns = everything[:, 0].long() // 15, everything[:, 0].long() % 15
    assert torch.equal(labels, torch.from_numpy(truth[rows * 4 + 2, columns * 4 + 2].astype(np.int64)))
    one, other = labelled_pixels(features, truth, 5, 20), labelled_pixels(features, truth, 5, 20)
    assert len(one[1]) == 20
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[0], labelled_pixels(features, truth, 6, 20)[0])


def test_files_are_read_back_and_others_refused(tmp_path: Path) -> None:
    fit, path = statistics([1.0, 2.0, 3.0, 4.0]), tmp_path / "anomaly" / "features.safetensors"
    write_features(path, fit, ["a", "b", "c"], {"model_step": "70"})
    again = read_features(path, ["a", "b", "c"], 70)
    for name in ("means", "precision", "log_priors", "centers", "scales"):
        assert torch.equal(getattr(again, name), getattr(fit, name))
    with pytest.raises(UserError, match="another model or other classes"):
        read_features(path, ["a", "b", "c"], 71)
    with pytest.raises(UserError, match="another model or other classes"):
        read_features(path, ["a", "b"], 70)
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match="anomaly fit` first"):
        read_features(path, ["a", "b", "c"], 70)
