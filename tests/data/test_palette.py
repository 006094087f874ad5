from __future__ import annotations

import pytest

from segformer_spark.data.palette import OKABE_ITO, distinct_colors, smallest_distance


def test_the_first_are_okabe_and_itos() -> None:
    assert distinct_colors(8) == OKABE_ITO
    assert distinct_colors(3, with_black=False) == OKABE_ITO[1:4]


@pytest.mark.parametrize(("number", "least"), [(8, 12), (19, 8), (32, 6)])
def test_any_colour_vision_tells_them_apart(number: int, least: float) -> None:
    """A difference of 2.3 in L*a*b* is just noticeable (Mahy et al. 1994)."""
    assert smallest_distance(distinct_colors(number)) > least


def test_more_colours_begin_with_the_same() -> None:
    many = distinct_colors(60)
    assert len(set(many)) == 60
    assert many[:20] == distinct_colors(20)


def test_red_and_green_of_one_lightness_are_close_to_a_deuteranope() -> None:
    assert smallest_distance([(190, 90, 0), (110, 130, 0)]) < 12
    assert smallest_distance([(0, 0, 0), (255, 255, 255)]) == pytest.approx(100, abs=1)
