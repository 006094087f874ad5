from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from segformer_spark.losses.ohem import OhemLoss

IGNORE = 255


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 6, 7, generator=generator, dtype=torch.float64) * 3
    logits[2] *= 0.1
    labels = torch.randint(0, 4, (3, 6, 7), generator=generator)
    labels[0, :3] = IGNORE
    return logits, labels


def oracle(
    logits: torch.Tensor, labels: torch.Tensor, threshold: float, min_share: float, weights: np.ndarray
) -> float:
    """Sort every image's pixels by the probability of their class and keep from the hard end."""
    top, bottom = 0.0, 0.0
    for image, truth in zip(torch.softmax(logits, 1).numpy(), labels.numpy(), strict=True):
        y = truth[truth != IGNORE]
        p = image[:, truth != IGNORE][y, np.arange(len(y))]
        order = np.argsort(p)
        number = next(n for n in range(len(p) + 1) if n >= (p < threshold).sum() and n / len(p) >= min_share)
        kept = order[:number]
        top += (weights[y[kept]] * -np.log(p[kept])).sum()
        bottom += weights[y[kept]].sum()
    return float(top / bottom)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
def test_the_hardest_pixels_of_each_image_count(
    threshold: float, min_share: float, weights: list[float] | None
) -> None:
    logits, labels = batch()
    own = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = OhemLoss(threshold=threshold, min_share=min_share, class_weights=own, ignore_index=IGNORE)
    expected = oracle(logits, labels, threshold, min_share, np.asarray(weights or [1.0] * 4))
    assert float(loss(logits, labels)) == pytest.approx(expected, rel=1e-12)


def test_with_all_pixels_it_is_cross_entropy() -> None:
    logits, labels = batch()
    expected = functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(OhemLoss(threshold=0.1, min_share=1.0, ignore_index=IGNORE)(logits, labels), expected)


def test_easy_pixels_have_no_gradient() -> None:
    logits, labels = batch()
    logits.requires_grad_()
    OhemLoss(threshold=0.5, min_share=0.0, ignore_index=IGNORE)(logits, labels).backward()
    probability = torch.softmax(logits.detach(), 1).gather(1, labels.where(labels != IGNORE, 0)[:, None])[:, 0]
    easy = (probability >= 0.5) & (labels != IGNORE)
    assert easy.any()
    assert logits.grad is not None
    assert (logits.grad.movedim(1, -1)[easy] == 0).all()
