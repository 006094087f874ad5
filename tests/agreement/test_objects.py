from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from segformer_spark.agreement.objects import MIN_AREA, area_change, best_part, stimulus


def square(size: int, top: int, left: int, side: int, value: int = 200) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[top : top + side, left : left + side] = value
    return image


def test_the_stimulus_is_the_largest_part_that_is_not_dark() -> None:
    image = square(40, 2, 2, 10, value=11)
    image[20:35, 20:35] = 10  # adds up to 30: still dark
    image[38, 38] = 255
    assert stimulus(image).sum() == 100
    assert stimulus(image)[2, 2]
    assert not stimulus(np.full((4, 4, 3), 10, np.uint8)).any()


def test_diagonal_neighbours_are_connected() -> None:
    image = np.zeros((6, 6, 3), np.uint8)
    image[np.arange(5), np.arange(5)] = 255
    assert stimulus(image).sum() == 5


def test_the_part_of_any_class_that_fits_best() -> None:
    region = square(60, 10, 10, 20)[..., 0] > 0
    ids = np.zeros((60, 60), np.uint8)
    ids[10:30, 10:20] = 3  # half of the stimulus
    ids[8:32, 20:34] = 5  # the other half, and more around it
    ids[50:60, 50:60] = 3  # the same class elsewhere is another part
    part = best_part(ids, region)
    assert part is not None
    assert (part.class_id, part.area, part.iou) == (3, 200, 0.5)
    without = best_part(ids, region, ignored=[3])
    assert without is not None
    assert (without.class_id, without.area) == (5, 24 * 14)


def test_small_parts_and_parts_elsewhere_are_none() -> None:
    region = square(30, 0, 0, 7)[..., 0] > 0
    ids = np.zeros((30, 30), np.uint8)
    ids[0:5, 0:10] = 1
    assert ids.sum() == MIN_AREA
    assert best_part(ids, region, ignored=[0]) is None
    ids[5, 0] = 1
    assert best_part(ids, region, ignored=[0]) is not None
    assert best_part(ids, np.zeros_like(region), ignored=[0]) is None


@given(hnp.arrays(np.uint8, (14, 14), elements=st.integers(0, 2)), hnp.arrays(np.bool_, (14, 14)))
def test_as_scipy_labels_the_parts(ids: np.ndarray, region: np.ndarray) -> None:
    scores = []
    for class_id in range(3):
        labels, number = ndimage.label(ids == class_id, structure=np.ones((3, 3)))
        for part in (labels == n for n in range(1, number + 1)):
            if part.sum() > MIN_AREA:
                scores.append((part & region).sum() / (part | region).sum() if (part | region).any() else 0.0)
    found = best_part(ids, region)
    assert (found.iou if found else 0.0) == pytest.approx(max(scores, default=0.0))


def test_change_is_relative_to_before() -> None:
    before, after = square(64, 10, 10, 20), square(64, 10, 10, 30)
    ids = [(image[..., 0] > 0).astype(np.uint8) for image in (before, after)]
    change = area_change((before, ids[0]), (after, ids[1]))
    assert (change.area_before, change.area_after, change.iou_before, change.iou_after) == (400, 900, 1.0, 1.0)
    assert change.relative == pytest.approx(1.25)
    assert area_change((after, ids[1]), (before, ids[0])).relative == pytest.approx(5 / 9)
    lost = area_change((before, ids[0]), (np.zeros_like(after), ids[1]))
    assert (lost.area_before, lost.area_after, lost.relative) == (400, None, None)
