from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.data.dataset import IGNORE_INDEX
from segformer_spark.data.window import Window, cut_image, cut_mask, object_box, window_around

HEIGHT, WIDTH = 14, 20


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    return x, y, draw(st.integers(x, WIDTH - 1)), draw(st.integers(y, HEIGHT - 1))


@given(boxes())
def test_object_box_reads_back(box: tuple[int, int, int, int]) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 2
    assert object_box(mask, 0) == box
    assert object_box(np.where(mask == 2, IGNORE_INDEX, 0).astype(np.uint8), 0) is None


@given(boxes(), st.floats(0, 2), st.sampled_from([(1, 1), (3, 4), (720, 1280), (5, 2)]))
def test_the_window_holds_the_box_and_stays_inside(
    box: tuple[int, int, int, int], margin: float, ratio: tuple[int, int]
) -> None:
    window = window_around(box, margin, (HEIGHT, WIDTH), ratio=ratio)
    largest = max(HEIGHT / ratio[0], WIDTH / ratio[1])
    assert window.height < largest * ratio[0] + 1
    assert abs(window.height - window.width * ratio[0] / ratio[1]) < 1 + ratio[0] / ratio[1]
    assert window.left <= box[0]
    assert window.left + window.width > box[2]
    assert window.top <= box[1]
    assert window.top + window.height > box[3]
    for start, side, length in ((window.top, window.height, HEIGHT), (window.left, window.width, WIDTH)):
        if side <= length:
            assert 0 <= start <= length - side
        else:
            assert start <= 0
            assert start + side >= length


@given(st.integers(-8, 12), st.integers(-8, 18), st.integers(1, 25), st.integers(1, 25))
def test_cutting_is_padding_and_slicing(top: int, left: int, height: int, width: int) -> None:
    if top + height <= 0 or left + width <= 0:
        return
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    mask = rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    window, room = Window(top, left, height, width), 40
    rows, columns = slice(top + room, top + room + height), slice(left + room, left + room + width)
    padded = np.empty((HEIGHT + 2 * room, WIDTH + 2 * room, 3), np.uint8)
    padded[:] = (7, 8, 9)
    padded[room : room + HEIGHT, room : room + WIDTH] = image
    np.testing.assert_array_equal(cut_image(image, window, (7, 8, 9)), padded[rows, columns])
    labels = np.pad(mask, room, constant_values=IGNORE_INDEX)
    np.testing.assert_array_equal(cut_mask(mask, window), labels[rows, columns])


def test_the_side_is_the_longer_side_with_room_on_both() -> None:
    assert window_around((40, 40, 59, 49), 0.25, (100, 100)) == Window(30, 35, 30, 30)
    assert window_around((40, 40, 59, 49), 0.25, (100, 100), shift=(0.1, -0.2)) == Window(33, 29, 30, 30)


def test_what_does_not_fit_reaches_out_evenly() -> None:
    assert window_around((0, 0, 39, 9), 0.0, (10, 40)) == Window(-15, 0, 40, 40)
