from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segformer_spark.config.schema import CropConfig, DataConfig
from segformer_spark.data.crops import TrainingView
from segformer_spark.data.dataset import IGNORE_INDEX, Sample
from segformer_spark.data.registry import open_training_set
from segformer_spark.errors import ConfigError, DataError
from tests.data.readers.camvid_fixture import write_camvid

SIDE, HEIGHT, WIDTH = 64, 120, 160
BOX = (100, 50, 119, 61)


def sample(height: int = HEIGHT, width: int = WIDTH) -> Sample:
    """Red and green tell the place (smooth, so that resizing keeps it), the mask is the third of the width."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)
    return Sample(image, (columns * 3 // width).astype(np.uint8))


def view(
    seed: int = 0, source: Sample | None = None, box: Any = None, size: tuple[int, int] = (SIDE, SIDE), **settings: Any
) -> Sample:
    own = source or sample()
    return TrainingView(size, CropConfig(**settings))(own, box, "picture", np.random.default_rng(seed))


def extent(out: Sample) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what is shown, in native pixels, from the colours away from padding."""
    rows, columns = np.nonzero(out.mask != IGNORE_INDEX)
    x, y = out.image[..., 0].astype(float), out.image[..., 1].astype(float)
    inside = (rows, columns)
    return x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max()


def assert_aligned(out: Sample, width: int = WIDTH) -> None:
    """The mask is the third that the image's red says, but for a pixel at the borders."""
    valid = out.mask != IGNORE_INDEX
    expected = out.image[..., 0].astype(float) * 3 / width
    near_border = np.abs(expected - np.round(expected)) < 0.1
    np.testing.assert_array_equal(out.mask[valid & ~near_border], np.floor(expected)[valid & ~near_border])


@pytest.mark.parametrize("size", [(SIDE, SIDE), (48, 96), (96, 40)], ids=str)
@pytest.mark.parametrize("mode", ["none", "random", "fixed", "variable", "original", "box"])
def test_every_mode_shows_image_and_mask_together(mode: str, size: tuple[int, int]) -> None:
    for seed in range(10):
        out = view(seed, box=BOX, mode=mode, size=size)
        assert out.image.shape == (*size, 3)
        assert out.mask.shape == size
        assert_aligned(out)


@pytest.mark.parametrize("mode", ["variable", "original", "box"])
@pytest.mark.parametrize("size", [(48, 96), (96, 40)], ids=str)
def test_rectangles_keep_the_ratio_of_what_they_show(mode: str, size: tuple[int, int]) -> None:
    """A pixel of the model's input is as high as it is wide in the scene, also where the image limits the crop."""
    for scale in (0.5, 1.0, 4.0):
        out = view(1, box=BOX, mode=mode, size=size, scale=(scale, scale), jitter=0.0)
        left, top, right, bottom = extent(out)
        assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0], rel=0.12)
        assert (out.mask != IGNORE_INDEX).all() or mode == "box"


def test_a_random_rectangle_must_fit_on_both_sides() -> None:
    assert view(size=(48, 96), mode="random").mask.shape == (48, 96)
    with pytest.raises(DataError, match="picture is 160x120, smaller than the crop of 96x128"):
        view(size=(128, 96), mode="random")


def test_fixed_brings_the_image_to_cover_the_rectangle() -> None:
    out = view(1, size=(48, 96), mode="fixed", scale=(1.0, 1.0), base="short_side")
    left, top, right, bottom = extent(out)
    assert right - left == pytest.approx(WIDTH, abs=4), "160 x 120 covers 96 x 48 when its width does"
    assert bottom - top == pytest.approx(WIDTH / 2, abs=4)


def test_random_shows_native_pixels() -> None:
    corners = set()
    for seed in range(30):
        out = view(seed, mode="random")
        left, top, right, bottom = (int(v) for v in extent(out))
        assert (right - left, bottom - top) == (SIDE - 1, SIDE - 1)
        np.testing.assert_array_equal(out.image, sample().image[top : top + SIDE, left : left + SIDE])
        np.testing.assert_array_equal(out.mask, sample().mask[top : top + SIDE, left : left + SIDE])
        corners.add((left, top))
    assert len(corners) > 20


def test_random_crop_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(DataError, match="picture is 160x40, smaller than the crop of 64x64: lower data.image_size"):
        view(source=sample(40, 160), mode="random")


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_variable_takes_scale_times_the_side_from_the_native_image(scale: float) -> None:
    left, top, right, bottom = extent(view(1, mode="variable", scale=(scale, scale)))
    assert right - left == pytest.approx(scale * SIDE, abs=3)
    assert bottom - top == pytest.approx(scale * SIDE, abs=3)


def test_variable_is_clamped_to_the_image_without_padding() -> None:
    out = view(1, mode="variable", scale=(3.0, 3.0))
    assert (out.mask != IGNORE_INDEX).all()
    left, top, right, bottom = extent(out)
    assert right - left == pytest.approx(HEIGHT, abs=4)
    assert bottom - top == pytest.approx(HEIGHT, abs=4)


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.6])
def test_in_seed_mode_both_factors_cancel(scale: float) -> None:
    left, _, right, _ = extent(view(1, mode="original", scale=(scale, scale)))
    assert right - left == pytest.approx(SIDE, abs=3)


def test_fixed_resizes_first_and_pads_at_the_right_and_bottom() -> None:
    left, _, right, _ = extent(view(1, mode="fixed", scale=(2.0, 2.0)))
    assert right - left == pytest.approx(SIDE / 2, abs=2)
    small = view(1, mode="fixed", scale=(0.25, 0.25))
    height, width = HEIGHT // 4, WIDTH // 4
    assert (small.mask[height:] == IGNORE_INDEX).all()
    assert (small.mask[:, width:] == IGNORE_INDEX).all()
    assert (small.mask[:height, :width] != IGNORE_INDEX).all()


def test_fixed_from_the_short_side() -> None:
    out = view(1, mode="fixed", scale=(1.0, 1.0), base="short_side")
    _, top, _, bottom = extent(out)
    assert bottom - top == pytest.approx(HEIGHT, abs=4), "the short side becomes the side of the crop"


def test_box_crops_show_the_object_with_room() -> None:
    for seed in range(30):
        left, top, right, bottom = extent(view(seed, box=BOX, mode="box", margin=0.25, jitter=0.2))
        assert left <= BOX[0] + 1
        assert top <= BOX[1] + 1
        assert right >= BOX[2] - 1
        assert bottom >= BOX[3] - 1
        assert right - left < 45
    widths = {round(extent(view(s, box=BOX, mode="box"))[0]) for s in range(30)}
    assert len(widths) > 3, "jitter"
    still = [extent(view(s, box=BOX, mode="box", jitter=0.0)) for s in range(3)]
    assert still[0] == still[1] == still[2]


def test_box_share_leaves_some_images_whole() -> None:
    whole = sum(extent(view(s, box=BOX, mode="box", share=0.5))[2] > 150 for s in range(200))
    assert 70 < whole < 130
    assert extent(view(0, box=None, mode="box"))[2] > 150, "no object, nothing to crop around"


def test_a_class_takes_at_most_its_share_where_the_image_allows() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 120:] = 1
    source = Sample(sample().image, mask)

    def largest(out: Sample) -> float:
        return float(np.bincount(out.mask.ravel()).max() / out.mask.size)

    free = [largest(view(s, source, mode="random")) for s in range(60)]
    limited = [largest(view(s, source, mode="random", max_class_share=0.75)) for s in range(60)]
    assert np.mean(np.array(free) > 0.75) > 0.5
    assert np.mean(np.array(limited) > 0.75) < 0.1
    alone = Sample(sample().image, np.zeros((HEIGHT, WIDTH), np.uint8))
    assert largest(view(0, alone, mode="random", max_class_share=0.75)) == 1.0, "after ten attempts it is taken"


def test_a_crop_always_shows_something_labelled() -> None:
    mask = np.full((HEIGHT, WIDTH), IGNORE_INDEX, np.uint8)
    mask[0, 0] = 1
    for seed in range(20):
        assert (view(seed, Sample(sample().image, mask), mode="random").mask == 1).any()


def test_modes_that_cannot_work_are_refused(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    with pytest.raises(ConfigError, match="camvid has neither labelled boxes nor a background class"):
        open_training_set(DataConfig(dataset="camvid", root=str(tmp_path)), CropConfig(mode="box"))
    for settings, message in (
        ({"mode": "box", "max_class_share": 0.5}, "max_class_share goes with random crops"),
        ({"mode": "random", "share": 0.5}, "share goes with mode box"),
        ({"mode": "fixed", "scale": (2.0, 1.0)}, "scale must be"),
    ):
        with pytest.raises(ValueError, match=message):
            CropConfig(**settings)  # type: ignore[arg-type]
