"""The mask with the highest expected IoU: against all masks of small images, and against RankSEG."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import rankseg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segformer_spark.evaluation.decision import Decision, image_thresholds
from segformer_spark.evaluation.enlarged import enlarged_ids, enlarged_probabilities
from segformer_spark.evaluation.expected_iou import expected_iou, threshold_of

probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9)


@given(probabilities)
@settings(max_examples=100)
def test_no_mask_has_a_higher_expected_iou_or_dice(values: list[float]) -> None:
    p = np.array(values)
    iou, dice = [0.0], [0.0]
    for mask in itertools.product([False, True], repeat=len(p)):
        taken = np.array(mask)
        overlap, union = p[taken].sum(), taken.sum() + p.sum() - p[taken].sum()
        iou.append(overlap / union if union else 0.0)
        dice.append(2 * overlap / (taken.sum() + p.sum()) if taken.sum() + p.sum() else 0.0)
    found = expected_iou(torch.from_numpy(p))
    assert float(found) == pytest.approx(max(iou), abs=1e-12)
    assert 2 * float(found) / (1 + float(found)) == pytest.approx(max(dice), abs=1e-12), "one mask is best for both"
    mask = p > float(threshold_of(found))
    overlap = p[mask].sum()
    assert overlap / max(mask.sum() + p.sum() - overlap, 1e-300) == pytest.approx(max(iou), abs=1e-12)


def test_masks_are_those_of_rankseg() -> None:
    """Its reciprocal moments take the variance into account, ours do not: nearly all pixels agree."""
    generator = torch.Generator().manual_seed(0)
    field = torch.nn.functional.interpolate(torch.randn(1, 1, 6, 6, generator=generator), (48, 48), mode="bicubic")
    p = (2 * field).sigmoid()
    theirs = rankseg.rankseg_rma(p, metric="iou", output_mode="multilabel", pruning_prob=0.0)[0, 0].bool()
    ours = p[0, 0] > threshold_of(expected_iou(p.flatten().double())).float()
    assert (ours != theirs).float().mean() < 0.005
    assert (ours != (p[0, 0] > 0.5)).float().mean() > 0.01, "the threshold is not a half"


def test_a_class_that_is_hardly_there_meets_the_floor() -> None:
    logits = torch.full((2, 8, 8), 0.0)
    logits[1] = -5.0
    low = image_thresholds(Decision("expected_iou", floor=0.2), [logits])
    assert low[1] == pytest.approx(0.2)
    assert low[0] == pytest.approx(0.5, abs=0.01)
    assert (enlarged_ids([logits], (8, 8), Decision("expected_iou", floor=0.2)) == 0).all()


@pytest.mark.parametrize("passes", [1, 2])
def test_offsets_before_enlarging_are_quotients_of_probabilities(passes: int) -> None:
    generator = torch.Generator().manual_seed(passes)
    logits = [3 * torch.randn(4, 7, 9, generator=generator) for _ in range(passes)]
    thresholds = (0.1, 0.3, 0.45, 0.2)
    decision = Decision("thresholds", temperature=1.7, thresholds=thresholds)
    found = enlarged_ids(logits, (50, 61), decision)
    probabilities = enlarged_probabilities([one / 1.7 for one in logits], (50, 61)).double()
    expected = (probabilities / torch.tensor(thresholds).double()[:, None, None]).argmax(0)
    assert (found.long() != expected).float().mean() < 1e-3
    plain = enlarged_ids(logits, (50, 61))
    assert not torch.equal(found, plain)
