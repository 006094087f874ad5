from __future__ import annotations

import colorsys

import numpy as np
import pytest

from segformer_spark.data.photometric import distort


class Scripted:
    """A generator that hands out what the test says."""

    def __init__(self, chances: list[float], amounts: list[float]) -> None:
        self.chances, self.amounts = iter(chances), iter(amounts)

    def random(self) -> float:
        return next(self.chances)

    def uniform(self, low: float, high: float) -> float:
        value = next(self.amounts)
        assert low <= value <= high
        return value


PIXELS = np.array([[[200, 60, 60], [30, 90, 160], [120, 120, 120], [10, 240, 30]]], np.uint8)
YES, NO = 0.0, 0.9


def test_brightness_then_contrast() -> None:
    # brightness?, contrast first?, contrast?, saturation?, hue?
    rng = Scripted([YES, YES, YES, NO, NO], [20.0, 0.5, 1.0, 0.0])
    np.testing.assert_array_equal(distort(PIXELS, rng), np.rint((PIXELS + 20.0) * 0.5))  # type: ignore[arg-type]


def test_contrast_may_come_last() -> None:
    rng = Scripted([NO, NO, NO, NO, YES], [1.0, 0.0, 1.5])
    expected = np.clip(np.rint(PIXELS * 1.5), 0, 255)
    np.testing.assert_array_equal(distort(PIXELS, rng), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("factor", "degrees"), [(0.5, 0.0), (1.0, 30.0), (1.4, -36.0)])
def test_colours_are_those_of_hsv(factor: float, degrees: float) -> None:
    rng = Scripted([NO, NO, YES, YES, NO], [factor, degrees])
    out = distort(PIXELS, rng)[0]  # type: ignore[arg-type]
    for pixel, found in zip(PIXELS[0], out, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1.0, saturation * factor), value)
        np.testing.assert_allclose(found, np.array(expected) * 255, atol=1.01)


def test_half_of_each() -> None:
    changed = sum(bool((distort(PIXELS, np.random.default_rng(s)) != PIXELS).any()) for s in range(300))
    assert 265 < changed < 300, "1/16 of the images keep their light"
    assert (distort(PIXELS, np.random.default_rng(5)) == distort(PIXELS, np.random.default_rng(5))).all()
