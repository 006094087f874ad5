"""Corrections of masks, against scipy's connected components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from segformer_spark.evaluation.postprocessing import Postprocessing, postprocess

masks = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2))
EIGHT = np.ones((3, 3))


@given(masks, st.sampled_from([0.0, 0.05, 0.2]))
@settings(max_examples=100)
def test_small_parts_go_and_nothing_else(mask: np.ndarray, share: float) -> None:
    found = postprocess(mask, Postprocessing(min_area=share), 0)
    small = np.zeros(mask.shape, bool)
    for index in (1, 2):
        parts, number = ndimage.label(mask == index, EIGHT)
        for part in range(1, number + 1):
            small |= (parts == part) & ((parts == part).sum() < share * mask.size)
    if small.all():
        assert np.array_equal(found, mask), "there is no class to take"
    else:
        assert np.array_equal(found[~small], mask[~small])
        assert (np.isin(found[small], mask[~small])).all()


def test_only_the_largest_part_stays() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:8, 2:8], mask[12:14, 12:14] = 1, 1
    found = postprocess(mask, Postprocessing(largest=(1,)), 0)
    assert (found == 1).sum() == 36
    assert found[12, 12] == 0


def test_holes_are_filled_but_not_bays() -> None:
    mask = np.ones((20, 20), np.uint8)
    mask[5:7, 5:7] = 0
    mask[0:3, 10:12] = 0
    found = postprocess(mask, Postprocessing(max_hole=0.05), 0)
    assert (found[5:7, 5:7] == 1).all()
    assert (found[0:3, 10:12] == 0).all(), "it is open to the border"
    assert np.array_equal(postprocess(mask, Postprocessing(max_hole=0.001), 0), mask)


def test_a_speck_takes_the_class_around_it() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[5:25, 5:25] = 1
    mask[15, 15] = 2
    assert postprocess(mask, Postprocessing(min_area=0.01), None)[15, 15] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, np.uint8)
    assert np.array_equal(postprocess(mask, Postprocessing((1,), 0.5, 0.5), 0), mask)
