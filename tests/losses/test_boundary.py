from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from segformer_spark.losses.boundary import BoundaryCrossEntropyLoss, near_boundary

IGNORE = 255
labels = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 0, 0, 1, 2, IGNORE]))


@given(labels, st.integers(1, 4))
def test_the_band_holds_what_has_two_labels_around_it(mask: np.ndarray, radius: int) -> None:
    found = near_boundary(torch.from_numpy(mask.astype(np.int64))[None], radius, IGNORE)[0].numpy()
    square = np.zeros(mask.shape, bool)
    for row, column in np.ndindex(*mask.shape):
        part = mask[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
        square[row, column] = mask[row, column] != IGNORE and len(np.unique(part[part != IGNORE])) > 1
    np.testing.assert_array_equal(found, square)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    truth = torch.zeros(2, 12, 12, dtype=torch.int64)
    truth[0, :, 6:] = 1
    truth[1, 3:9, 3:9] = 2
    truth[0, :2] = IGNORE
    return torch.randn(2, 3, 12, 12, generator=generator, dtype=torch.float64), truth


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_pixels_near_a_boundary_weigh_more(class_weights: list[float] | None) -> None:
    logits, truth = batch()
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    each = functional.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none").numpy()
    y = truth.numpy()
    total = bottom = 0.0
    for image, row, column in np.ndindex(*y.shape):
        if y[image, row, column] == IGNORE:
            continue
        part = y[image, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        weight = 1 + 4.0 * (len(np.unique(part[part != IGNORE])) > 1)
        weight *= 1 if class_weights is None else class_weights[y[image, row, column]]
        total += weight * each[image, row, column]
        bottom += weight
    loss = BoundaryCrossEntropyLoss(radius=2, weight=4.0, class_weights=weights, ignore_index=IGNORE)
    assert float(loss(logits, truth)) == pytest.approx(total / bottom, rel=1e-12)


def test_without_extra_weight_it_is_cross_entropy() -> None:
    logits, truth = batch()
    expected = functional.cross_entropy(logits, truth, ignore_index=IGNORE)
    torch.testing.assert_close(BoundaryCrossEntropyLoss(weight=0.0, ignore_index=IGNORE)(logits, truth), expected)
