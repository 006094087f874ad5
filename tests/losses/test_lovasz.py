from __future__ import annotations

import numpy as np
import pytest
import torch

from segformer_spark.losses.lovasz import LovaszSoftmaxLoss, jaccard_gradient

IGNORE = 255


def jaccard_loss(mistaken: set[int], truth: np.ndarray) -> float:
    """Jaccard loss of the set function: pixels in `mistaken` are predicted wrongly, all others rightly."""
    positive = set(np.flatnonzero(truth))
    predicted = positive.symmetric_difference(mistaken)
    union = positive | predicted
    return 1 - len(positive & predicted) / len(union) if union else 0.0


def lovasz_extension(errors: np.ndarray, truth: np.ndarray) -> float:
    """Definition 1 of the paper: errors in falling order, each times what its pixel adds to the set function."""
    value, mistaken, before = 0.0, set(), 0.0
    for pixel in np.argsort(-errors, kind="stable"):
        mistaken.add(int(pixel))
        now = jaccard_loss(mistaken, truth)
        value += errors[pixel] * (now - before)
        before = now
    return value


def oracle(logits: torch.Tensor, labels: torch.Tensor, weights: list[float] | None = None) -> float:
    images = []
    for image, truth in zip(torch.softmax(logits, 1).numpy(), labels.numpy(), strict=True):
        valid = truth != IGNORE
        if not valid.any():
            continue
        p, y = image[:, valid], truth[valid]
        present = np.unique(y)
        values = [lovasz_extension(np.where(y == c, 1 - p[c], p[c]), y == c) for c in present]
        images.append(np.average(values, weights=None if weights is None else np.asarray(weights)[present]))
    return float(np.mean(images))


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 3.0]])
def test_the_loss_is_the_extension_of_the_jaccard_loss(weights: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 4, 5), generator=generator)
    labels[0, :2] = IGNORE
    labels[1] = IGNORE
    loss = LovaszSoftmaxLoss(
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float64), ignore_index=IGNORE
    )
    assert float(loss(logits, labels)) == pytest.approx(oracle(logits, labels, weights), rel=1e-12)


def test_for_certain_predictions_it_is_the_jaccard_loss() -> None:
    truth = torch.tensor([[[1, 1, 0, 0, 0, 1]]])
    predicted = torch.tensor([[[1, 0, 0, 0, 1, 1]]])
    logits = torch.nn.functional.one_hot(predicted, 2).movedim(-1, 1).double() * 200
    foreground, background = 1 - 2 / 4, 1 - 2 / 4
    loss = LovaszSoftmaxLoss(ignore_index=IGNORE)(logits, truth)
    assert float(loss) == pytest.approx((foreground + background) / 2)


def test_weights_of_sorted_errors_sum_to_the_loss_of_all_wrong() -> None:
    gradient = jaccard_gradient(torch.tensor([False, True, True, False, True]))
    assert float(gradient.sum()) == pytest.approx(1.0)
    assert (gradient > 0).all()
