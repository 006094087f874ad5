"""Calibration against torchmetrics and fiducio; metrics per image against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segformer_spark.evaluation.tuning import Sampler, joined, likely_temperature
from segformer_spark.metrics.calibration import BINS, calibration_counts, expected_calibration_error, reliability
from segformer_spark.metrics.image_wise import image_wise


def test_ece_is_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(5000, 4, generator=generator)).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    confidence, predicted = probabilities.max(1)
    counts = calibration_counts(confidence, predicted == labels).numpy()
    expected = multiclass_calibration_error(probabilities, labels, 4, n_bins=BINS, norm="l1")
    assert expected_calibration_error(counts) == pytest.approx(float(expected), abs=1e-6)
    rows = reliability(counts)
    assert sum(row["pixels"] for row in rows) == 5000
    assert all(row["from"] < row["confidence"] <= row["to"] for row in rows if row["pixels"])
    assert expected_calibration_error(np.zeros((BINS, 3), np.int64)) is None


def test_bins_at_their_borders() -> None:
    counts = calibration_counts(torch.tensor([0.0, 1 / BINS, 1.0]), torch.tensor([True, True, False]))
    assert counts[:, 0].tolist() == [2, *[0] * (BINS - 2), 1]
    assert counts[:, 1].tolist() == [2, *[0] * (BINS - 1)]


def test_the_likely_temperature_is_fiducios() -> None:
    from fiducio import TemperatureScaling

    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(1, 3, 40, 50, generator=generator)
    flat = (logits / 2.2).softmax(1).movedim(1, -1).flatten(0, 2)
    labels = torch.multinomial(flat, 1, generator=generator).view(40, 50)
    sampler = Sampler(1, ("a", "b", "c"), 255)
    sampler.add(logits[0], labels.to(torch.uint8).numpy())
    found = likely_temperature(joined(sampler.parts(), ("a", "b", "c")))
    theirs = TemperatureScaling()
    theirs.fit(logits, labels[None])
    assert found == pytest.approx(2.2, abs=0.15)
    assert found == pytest.approx(float(theirs.temperature), abs=0.03)


def test_means_over_images_and_classes() -> None:
    iou = np.array([[1.0, 0.5, np.nan], [0.2, np.nan, np.nan], [np.nan] * 3, [0.0, 1.0, np.nan]])
    found = image_wise(iou)
    assert found["miou_i"] == pytest.approx(np.mean([0.75, 0.2, 0.5]))
    assert found["miou_c"] == pytest.approx(np.mean([0.4, 0.75]))
    assert found["miou_i_worst"]["10"] == pytest.approx(0.2)
    assert found["miou_c_worst"]["10"] == pytest.approx(np.mean([0.0, 0.5]))
    assert image_wise(np.full((2, 3), np.nan))["miou_i"] is None
