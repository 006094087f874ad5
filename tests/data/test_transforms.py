from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import normalize

from segformer_spark.config.schema import AugmentationConfig
from segformer_spark.data.dataset import IGNORE_INDEX, Sample
from segformer_spark.data.resize import IMAGENET_MEAN, IMAGENET_STD, resize_image, resize_mask
from segformer_spark.data.transforms import (
    NativeSample,
    TrainTransform,
    build_augmentation,
    image_to_tensor,
    join_mosaic,
    normalize_images,
)
from segformer_spark.errors import DataError

SIDE = 64
OFF = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "affine": 0.0, "color": 0.0, "blur": 0.0}


def sample() -> Sample:
    """A mask that can be read back from the image, so that both must move together."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10:30, 12:40] = 1
    mask[35:50, 40:58] = 2
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[mask == 1] = (200, 60, 60)
    image[mask == 2] = (60, 60, 200)
    return Sample(image, mask)


def apply(seed: int = 0, **settings: object) -> Sample:
    transform = TrainTransform((SIDE, SIDE), AugmentationConfig(**{**OFF, **settings}), seed=seed)  # type: ignore[arg-type]
    return transform([native()], 0, 0)


def native() -> NativeSample:
    return NativeSample(sample(), None, "sample")


def ids_in(image: np.ndarray) -> np.ndarray:
    red, blue = image[..., 0].astype(int), image[..., 2].astype(int)
    return np.where(red - blue > 70, 1, np.where(blue - red > 70, 2, 0))


def agreement(out: Sample) -> float:
    valid = out.mask != IGNORE_INDEX
    return float((ids_in(out.image)[valid] == out.mask[valid]).mean())


def test_nothing_switched_on_changes_nothing() -> None:
    out = apply()
    np.testing.assert_array_equal(out.image, sample().image)
    np.testing.assert_array_equal(out.mask, sample().mask)


@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_flips(name: str, axis: int) -> None:
    out = apply(**{name: 1.0})
    np.testing.assert_array_equal(out.image, np.flip(sample().image, axis))
    np.testing.assert_array_equal(out.mask, np.flip(sample().mask, axis))


STILL = {"affine": 1.0, "rotation_degrees": 0.0, "scale": (1.0, 1.0), "shift": 0.0}


@pytest.mark.parametrize(
    "settings", [{"rotation_degrees": 30.0}, {"scale": (0.6, 0.6)}, {"scale": (1.5, 1.5)}, {"shift": 0.3}]
)
def test_affine_moves_image_and_mask_together(settings: dict[str, object]) -> None:
    for seed in range(6):
        out = apply(seed, **{**STILL, **settings})
        assert (out.mask != sample().mask).mean() > 0.01, "not applied"
        assert agreement(out) > 0.97
        assert set(np.unique(out.mask)) <= {0, 1, 2, IGNORE_INDEX}


def test_affine_without_a_range_changes_nothing() -> None:
    np.testing.assert_array_equal(apply(**STILL).mask, sample().mask)


def test_scale_scales() -> None:
    area = (apply(**{**STILL, "scale": (0.5, 0.5)}).mask == 1).sum() / (sample().mask == 1).sum()
    assert 0.2 < area < 0.3


def test_rotation_stays_within_its_limit() -> None:
    angles = []
    for seed in range(40):
        out = apply(seed, **{**STILL, "rotation_degrees": 30.0})
        points = np.argwhere(out.mask == 1)[:, ::-1].astype(np.float64)
        x, y = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]  # the long axis
        angles.append(np.degrees(np.arctan(y / x)))
    assert max(np.abs(angles)) < 33
    assert max(np.abs(angles)) > 20
    assert min(angles) < -10
    assert max(angles) > 10


def test_new_borders_are_ignored_and_not_background() -> None:
    out = apply(**{**STILL, "scale": (0.5, 0.5)})
    border = out.mask == IGNORE_INDEX
    assert 0.7 < border.mean() < 0.8
    mean_color = [round(255 * channel) for channel in IMAGENET_MEAN]
    np.testing.assert_array_equal(out.image[2, 2], mean_color)
    assert border[2, 2]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colors_change_the_image_only(name: str) -> None:
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "color": 1.0}
    np.testing.assert_array_equal(apply(**still).image, sample().image)
    out = apply(**{**still, name: 0.3})
    np.testing.assert_array_equal(out.mask, sample().mask)
    change = np.abs(out.image.astype(int) - sample().image).max()
    assert change > 3, "not applied"


def test_blur_softens_edges_of_the_image_only() -> None:
    out = apply(blur=1.0, blur_sigma=(1.5, 1.5))
    np.testing.assert_array_equal(out.mask, sample().mask)
    assert (
        np.abs(np.diff(out.image.astype(int), axis=1)).max() < np.abs(np.diff(sample().image.astype(int), axis=1)).max()
    )


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    config = AugmentationConfig(affine=1.0, color=1.0, blur=1.0)
    one, two = TrainTransform((SIDE, SIDE), config, 7), TrainTransform((SIDE, SIDE), config, 7)
    for _ in range(3):
        one([native()], 0, 99)  # history must not matter
    np.testing.assert_array_equal(one([native()], 3, 5).image, two([native()], 3, 5).image)
    for epoch, index, seed in ((4, 5, 7), (3, 6, 7), (3, 5, 8)):
        other = TrainTransform((SIDE, SIDE), config, seed)([native()], epoch, index)
        assert (other.image != two([native()], 3, 5).image).any()


def test_probabilities_are_kept() -> None:
    transform = TrainTransform((SIDE, SIDE), AugmentationConfig(**{**OFF, "horizontal_flip": 0.3}), 0)  # type: ignore[arg-type]
    flipped = sum(bool((transform([native()], 0, i).mask != sample().mask).any()) for i in range(400))
    assert 90 < flipped < 150


def test_switched_off_transforms_are_not_built() -> None:
    assert len(build_augmentation(AugmentationConfig(**OFF)).transforms) == 0  # type: ignore[arg-type]
    assert len(build_augmentation(AugmentationConfig()).transforms) == 5


def test_masks_are_resized_without_new_labels() -> None:
    mask = np.array([[0, 2], [2, 0]], np.uint8).repeat(16, 0).repeat(16, 1)
    for size in ((7, 9), (50, 64), (16, 16)):
        assert set(np.unique(resize_mask(mask, size))) <= {0, 2}
    np.testing.assert_array_equal(resize_mask(mask, (64, 64)), mask.repeat(2, 0).repeat(2, 1))


def test_shrinking_averages_areas() -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 200
    image = np.stack([checker] * 3, -1).astype(np.uint8)
    assert set(np.unique(resize_image(image, (32, 32)))) == {100}


def axis_weights(length: int, size: int) -> np.ndarray:
    """(size, length): shares of each pixel's area, or linear weights between half-pixel centres, clamped at borders."""
    weights = np.zeros((size, length))
    for row in range(size):
        if size <= length:
            first, last = row * length / size, (row + 1) * length / size
            covered = np.minimum(np.arange(1, length + 1), last) - np.maximum(np.arange(length), first)
            weights[row] = np.clip(covered, 0, None) * size / length
        else:
            center = min(max((row + 0.5) * length / size - 0.5, 0), length - 1)
            left = int(center)
            weights[row, left] += 1 - (center - left)
            weights[row, min(left + 1, length - 1)] += center - left
    return weights


@settings(max_examples=100)
@given(st.tuples(*[st.integers(1, 96)] * 4), st.integers(0, 2**32 - 1))
def test_each_axis_is_averaged_where_it_shrinks_and_interpolated_where_it_grows(
    sides: tuple[int, int, int, int], seed: int
) -> None:
    height, width, *size = sides
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    rows, columns = axis_weights(height, size[0]), axis_weights(width, size[1])
    exact = np.einsum("rh,hwc,sw->rsc", rows, image.astype(float), columns)
    assert np.abs(resize_image(image, (size[0], size[1])) - exact).max() <= 1.5, "rounded after each axis"


@pytest.mark.parametrize(
    ("shape", "size"),
    [((500, 4096), (512, 512)), ((1, 4096), (4096, 1)), ((4096, 3), (2, 4096)), ((375, 1242), (512, 512))],
)
def test_stripes_across_the_axis_that_shrinks(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Alternating black and white: OpenCV's INTER_AREA shows one of the two where the other axis grows."""
    across = int(shape[1] > size[1])
    image = (np.indices(shape)[across] % 2 * 255).astype(np.uint8)
    found = resize_image(image, size).astype(float)
    exact = axis_weights(shape[0], size[0]) @ image.astype(float) @ axis_weights(shape[1], size[1]).T
    assert np.abs(found - exact).max() <= 1.5
    assert found.mean() == pytest.approx(127.5, abs=1)
    if shape[across] % size[across] == 0:  # Pillow's box filter has no fractions of pixels
        pillow = PIL.Image.fromarray(image)
        shrunk = (size[1], shape[0]) if across else (shape[1], size[0])
        pillow = pillow.resize(shrunk, PIL.Image.Resampling.BOX).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
        assert np.abs(found - np.asarray(pillow)).max() <= 1


def test_normalization_is_that_of_imagenet() -> None:
    images = torch.stack([image_to_tensor(sample().image)])
    expected = normalize(images.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(normalize_images(images), expected)


def test_blanked_rectangles_are_grey_and_ignored() -> None:
    out = apply(coarse_dropout=1.0, coarse_dropout_holes=5, coarse_dropout_size=0.4)
    blanked = out.mask == IGNORE_INDEX
    assert 0.001 < blanked.mean() < 0.7
    assert (out.image[blanked] == [round(255 * channel) for channel in IMAGENET_MEAN]).all()
    np.testing.assert_array_equal(out.image[~blanked], sample().image[~blanked])
    np.testing.assert_array_equal(out.mask[~blanked], sample().mask[~blanked])


def test_augmentation_that_leaves_no_labelled_pixel_is_an_error() -> None:
    corner = np.full((SIDE, SIDE), IGNORE_INDEX, np.uint8)
    corner[0, 0] = 1
    one = NativeSample(Sample(sample().image, corner), None, "lonely")
    zoomed = AugmentationConfig(**{**OFF, **STILL, "scale": (3.0, 3.0)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="lonely: augmentation left no labelled pixel in 10 attempts; lower"):
        TrainTransform((SIDE, SIDE), zoomed, 0)([one], 0, 0)
    corner[0] = 1
    sometimes = AugmentationConfig(**{**OFF, **STILL, "shift": 0.3})  # type: ignore[arg-type]
    for index in range(30):
        assert (TrainTransform((SIDE, SIDE), sometimes, 0)([one], 0, index).mask == 1).any(), "it is drawn anew"
    unlabelled = NativeSample(Sample(sample().image, np.full((SIDE, SIDE), IGNORE_INDEX, np.uint8)), None, "void")
    assert (TrainTransform((SIDE, SIDE), zoomed, 0)([unlabelled], 0, 0).mask == IGNORE_INDEX).all(), "nothing to lose"


def test_mosaic_joins_four_images_with_their_masks() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    views = [
        Sample(np.full((SIDE, SIDE, 3), color, np.uint8), np.full((SIDE, SIDE), index, np.uint8))
        for index, color in enumerate(colors)
    ]
    centers = set()
    for seed in range(20):
        out = join_mosaic(views, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(colors)[out.mask], out.image)
        assert set(np.unique(out.mask)) == {0, 1, 2, 3}
        row, column = int((out.mask[:, 0] == 0).sum()), int((out.mask[0] == 0).sum())
        assert SIDE // 4 <= row <= 3 * SIDE // 4
        assert SIDE // 4 <= column <= 3 * SIDE // 4
        centers.add((row, column))
    assert len(centers) > 10


def test_mosaic_partners_are_a_function_of_seed_epoch_and_index() -> None:
    transform = TrainTransform((SIDE, SIDE), AugmentationConfig(mosaic=0.5), 3)
    drawn = [transform.partners(epoch, index, 50) for epoch in range(4) for index in range(50)]
    assert drawn == [
        TrainTransform((SIDE, SIDE), AugmentationConfig(mosaic=0.5), 3).partners(e, i, 50)
        for e in range(4)
        for i in range(50)
    ]
    joined = [partners for partners in drawn if partners]
    assert 70 < len(joined) < 130
    assert all(len(partners) == 3 and all(0 <= p < 50 for p in partners) for partners in joined)
    assert TrainTransform((SIDE, SIDE), AugmentationConfig(), 3).partners(0, 0, 50) == []


def sparse(number: int) -> NativeSample:
    """An image with one labelled block, so that many crops of it show none."""
    mask = np.full((SIDE, SIDE), IGNORE_INDEX, np.uint8)
    mask[4 * number : 4 * number + 4, :4] = 1
    return NativeSample(Sample(sample().image, mask), None, f"sparse{number}")


def test_mosaic_and_crops_that_lost_all_labels_are_drawn_anew() -> None:
    joined = TrainTransform((SIDE, SIDE), AugmentationConfig(**OFF, mosaic=1.0), 0)  # type: ignore[arg-type]
    one = TrainTransform((SIDE, SIDE), AugmentationConfig(**OFF), 0)  # type: ignore[arg-type]
    for index in range(40):
        assert (joined([sparse(n) for n in range(4)], 0, index).mask == 1).any()
    void = NativeSample(Sample(sample().image, np.full((SIDE, SIDE), IGNORE_INDEX, np.uint8)), None, "void")
    assert (one([void], 0, 0).mask == IGNORE_INDEX).all()
    for index in range(40):
        assert (joined([sparse(15), void, void, void], 0, index).mask == 1).any()


@pytest.mark.parametrize("size", [(32, 96), (80, 40)], ids=str)
def test_everything_works_on_rectangles(size: tuple[int, int]) -> None:
    switches = dict.fromkeys(
        ["horizontal_flip", "vertical_flip", "affine", "color", "blur", "photometric", "mosaic"], 1.0
    )
    transform = TrainTransform(size, AugmentationConfig(**switches, coarse_dropout=1.0), 0)  # type: ignore[arg-type]
    for index in range(5):
        out = transform([native()] * 4, 0, index)
        assert (out.image.shape, out.mask.shape) == ((*size, 3), size)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_lie_on_both_sides_of_one(name: str) -> None:
    """Brightness moves the mean, contrast the deviation, saturation the distance between channels."""
    measures = {
        "brightness": lambda image: image.mean(),
        "contrast": lambda image: image.std(),
        "saturation": lambda image: np.ptp(image.astype(int), axis=2).mean(),
    }
    measure = measures[name]
    changes = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.3}
    before = measure(sample().image)
    after = [measure(apply(seed, color=1.0, **changes).image) for seed in range(20)]
    assert min(after) < 0.95 * before
    assert max(after) > 1.05 * before


def test_both_arithmetics_normalize_alike() -> None:
    images = torch.randint(0, 256, (2, 3, 9, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = normalize_images(images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    by_hand = (images.numpy().transpose(0, 2, 3, 1) / 255.0 - mean) / std
    np.testing.assert_allclose(expected.permute(0, 2, 3, 1).numpy(), by_hand, rtol=1e-5, atol=1e-6)
    on_gpu = normalize_images(images, "gpu")
    assert torch.equal(on_gpu, expected)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
