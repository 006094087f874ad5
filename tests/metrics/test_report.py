from __future__ import annotations

import numpy as np
import pytest

from segformer_spark.metrics.report import by_object_size

NAMES = ("background", "body", "panels")


def image(body: int, panels: int, hit: int) -> list[list[int]]:
    """Counts of an image of 1000 pixels whose body is met by `hit` pixels and whose panels are met wholly."""
    background = 1000 - body - panels
    return [[background + body - hit, background, background], [hit, body, hit], [panels, panels, panels]]


def test_images_fall_into_ranges_of_their_objects_share() -> None:
    counts = np.array([image(4, 1, 2), image(6, 3, 6), image(20, 5, 10), image(90, 10, 90), image(500, 100, 250)])
    sizes = by_object_size(counts, NAMES, 0)
    assert list(sizes) == ["0-1 %", "1-3 %", "10-100 %"]
    assert [one["num_images"] for one in sizes.values()] == [2, 1, 2]
    assert sizes["0-1 %"]["iou_body"] == pytest.approx((0.5 + 1.0) / 2)
    assert sizes["10-100 %"]["iou_body"] == pytest.approx((1.0 + 0.5) / 2)
    assert sizes["1-3 %"]["spark_score"] == pytest.approx((0.0 + 1.0) / 2), "an IoU of 0.5 is above no threshold"


def test_what_is_absent_does_not_count_as_found() -> None:
    no_object = [[1000, 1000, 1000], [0, 0, 0], [0, 0, 0]]
    no_panels = image(90, 0, 45)
    sizes = by_object_size(np.array([no_object, no_panels]), NAMES, 0)
    assert sizes["no object"] == {"num_images": 1, "iou_body": None, "iou_panels": None, "spark_score": 1.0}
    assert sizes["3-10 %"]["iou_body"] == pytest.approx(0.5)
    assert sizes["3-10 %"]["iou_panels"] is None


def test_other_classes_have_no_spark_score() -> None:
    sizes = by_object_size(np.array([image(90, 10, 90)]), ("sea", "ship", "sail"), 0)
    assert sizes == {"10-100 %": {"num_images": 1, "iou_ship": 1.0, "iou_sail": 1.0}}
